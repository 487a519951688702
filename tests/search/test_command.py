"""The command line: a drop that is certified or refused, plans refined and taken up again, samples kept apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geoquant.cli import main
from geoquant.plan import Plan

NETS = str(Path(__file__).parents[1] / "nets.py")
MODEL = f"{NETS}:small_net"
DATA = """
from nets import small_batches, small_net

def batches(split):  # labels are what the float model says, so that every change of mind is a loss
    net = small_net()
    return [(x, net(x).argmax(1)) for x, _ in small_batches(40, 64, {"train": 1, "validation": 2}[split])]
"""


@pytest.fixture
def common(tmp_path: Path) -> list[str]:
    (tmp_path / "own.py").write_text(DATA)
    data = ["--data", f"{tmp_path / 'own.py'}:batches", "--images", "128", "--predictors", "weight_error"]
    return ["quantize", MODEL, *data, "--output", str(tmp_path / "out"), "--effort", "fast"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_smallest_model_within_a_drop(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--max-drop", "10", "--search-images", "640", "--certify-images", "1500", "--menu", "2,3,4,6,8", "--json"]
    code, out, err = run(capsys, *common, *wanted)
    assert code == 0
    document = json.loads(out)
    assert document["certificate"]["upper_bound"] <= 0.1
    assert len(document["search"]) >= 3
    assert Plan.load(tmp_path / "out").average_bits == document["average_bits"] < 8.2
    assert "calibration: 128 samples of train" in err
    assert "the next 640" in err
    code, out, err = run(capsys, *common, *wanted, "--certify-on", "validation")
    assert code == 0
    assert "of validation" in err


@pytest.mark.parametrize(
    "words",
    [["--activations", "int8:affine"], ["--activation-bits", "6", "--activation-grids", "int4:affine,int8:affine"]],
)
def test_a_drop_with_quantized_activations(
    words: list[str], common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--max-drop", "25", "--search-images", "320", "--certify-images", "800", "--menu", "4,8", "--json"]
    code, out, _ = run(capsys, *common, "--predictors", "one_layer_kl", *wanted, *words)
    assert code == 0
    document = json.loads(out)
    assert document["certificate"]["upper_bound"] <= 0.25
    plan = Plan.load(tmp_path / "out")
    assert [name for name, _ in plan.activations] == ["stem", "block", "head"]
    assert "6" not in words or document["average_activation_bits"] <= 6


def test_no_certificate_no_model(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--max-drop", "0.01", "--search-images", "64", "--certify-images", "64"]
    code, _, err = run(capsys, *common, *wanted)
    assert code == 2
    assert "no model is certified" in err
    assert not (tmp_path / "out").exists()
    code, _, err = run(capsys, *common, "--max-drop", "5", "--search-images", "100000")
    assert code == 2
    assert "0 for the certificate" in err


def test_a_plan_is_refined_and_a_second_run_repeats_nothing(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--average-bits", "4.5", "--solver", "uniform", "--refine-plan", "6"]
    assert run(capsys, *common, *wanted)[0] == 0
    first = (tmp_path / "out" / "refinement.json").read_bytes()
    plan = Plan.load(tmp_path / "out")
    assert plan.evidence is not None
    assert plan.evidence.table.predictor == "weight_error_refined"
    assert plan.average_bits <= 4.5
    code, _, err = run(capsys, *common, *wanted)
    assert code == 0
    assert "plans evaluated" in err
    assert (tmp_path / "out" / "refinement.json").read_bytes() == first
    code, _, err = run(capsys, *common, *wanted, "--norms", "none")
    assert code == 2
    assert "another pipeline" in err


def test_wishes_that_contradict_each_other(common: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--average-bits", "4"], ["--refine-plan", "5"], ["--plan", "plan.json"]):
        assert run(capsys, *common, "--max-drop", "1", *more)[0] == 2
