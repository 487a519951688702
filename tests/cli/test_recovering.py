"""`geoquant recover`: from quantize's folder to a model that lost less, and on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from geoquant.cli import main
from geoquant.data import load_images
from geoquant.models.zoo import digits_cnn
from geoquant.recovery import Trace
from geoquant.training import fit_classifier_

MODEL = "geoquant.models.zoo:digits_cnn"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = digits_cnn()
    fit_classifier_(net, *load_images("digits", "train").tensors(), epochs=2, seed=0)
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def common(weights: Path) -> list[str]:
    return [MODEL, "--weights", str(weights), "--data", "digits", "--normalize", "dataset"]


def test_it_recovers_from_quantizes_folder_and_resumes(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounded, out_folder = tmp_path / "rounded", tmp_path / "recovered"
    words = ["--average-bits", "2.1", "--grids", "binary,ternary", "--predictors", "weight_error", "--images", "64"]
    assert run(capsys, "quantize", *common, *words, "--effort", "fast", "--output", str(rounded))[0] == 0
    train = ["recover", *common, "--plan", str(rounded / "plan.json"), "--start", str(rounded)]
    train += [
        "--steps",
        "24",
        "--rate",
        "1e-3",
        "--validation",
        "128",
        "--no-mirror",
        "--output",
        str(out_folder),
        "--json",
    ]
    code, out, err = run(capsys, *train)
    assert code == 0, err
    document = json.loads(out)
    assert document["steps"] == 24
    assert document["validation_after"] < document["validation_before"]
    assert document["bytes"] == (rounded / "model.safetensors").stat().st_size
    assert len(Trace.load(out_folder / "trace.json").points) == 25
    assert json.loads(run(capsys, *train, "--resume")[1]) == document
    page = tmp_path / "page.html"
    assert run(capsys, "report", str(rounded), "--recovery", str(out_folder), "--output", str(page))[0] == 0
    assert 'id="recovery-trace"' in page.read_text()
    code, _, err = run(capsys, "report", str(rounded), "--recovery", str(rounded), "--output", str(page))
    assert (code, "holds no trace.json" in err) == (2, True)
    evaluated = ["evaluate", str(out_folder), "--model", *common, "--json"]
    code, out, _ = run(capsys, *evaluated)
    assert code == 0
    assert json.loads(out)["quantized"]["accuracy"] > 0.5


def test_it_says_whether_the_drop_that_was_asked_is_certified(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import geoquant as gq

    plan = gq.uniform_plan(digits_cnn(), "int4").save(tmp_path / "plan.json")
    words = ["recover", *common, "--plan", str(plan), "--output", str(tmp_path / "out"), "--steps", "2", "--json"]
    for drop, certified in (("30", True), ("0.01", False)):
        code, out, err = run(capsys, *words, "--certify-drop", drop, "--certify-images", "256")
        assert code == 0, err
        document = json.loads(out)
        assert document["certified"] is certified
        assert (document["certificate"]["upper_bound"] <= float(drop) / 100) is certified
        assert document["certificate"]["samples"] <= 256
    assert json.loads(run(capsys, *words)[1])["certificate"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--certify-drop", "1", "--certify-on", "train"], "train is trained on"),
        (["--method", "magic"], "there is no method 'magic'"),
        (["--layer", "nowhere"], "nowhere"),
        (["--parallel", "ddp"], "torchrun"),
        (["--rate", "-1"], "rate=-1.0"),
    ],
)
def test_mistakes_get_a_sentence(
    words: list[str], said: str, common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import geoquant as gq

    plan = gq.uniform_plan(digits_cnn(), "int3").save(tmp_path / "plan.json")
    code, _, err = run(capsys, "recover", *common, "--plan", str(plan), "--output", str(tmp_path / "out"), *words)
    assert code == 2
    assert said in " ".join(err.split())
    assert not (tmp_path / "out").exists()
