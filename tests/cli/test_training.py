"""`geoquant train` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from geoquant.cli import main
from geoquant.storage import read_document

NETS = str(Path(__file__).parents[1] / "nets.py")
MODEL, DATA = f"{NETS}:small_net", f"{NETS}:small_batches"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["train", MODEL, "--data", DATA, "--batch-size", "8", *arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_it_trains_says_what_it_cost_and_resumes_to_the_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ("--schedule", "numgeom", "--epochs", "2", "--output", str(tmp_path / "run"))
    code, out, err = run(capsys, *options)
    assert code == 0, err
    assert "fewer than float32" in out
    assert "stem" in out
    first = load_file(tmp_path / "run" / "model.safetensors")
    content = read_document(tmp_path / "run" / "run.json", "training-run", 1)[1]
    assert len(content["losses"]) == 12
    assert content["log"]["changes"][0]["reason"]
    code, out, _ = run(capsys, *options, "--json")  # everything is done: it only evaluates again
    assert json.loads(out)["bit_operations"] == content["bit_operations"]
    again = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--schedule", "numgem"), "numgeom"),
        (("--levels", "int4,int9"), "bits=9"),
        (("--schedule", "float32", "--levels", "int4"), "cannot be made"),
        (("--batch-size", "5000"), "no batch"),
        (("--optimizer", "lion"), "sgd or adam"),
    ],
)
def test_bad_input_is_one_sentence(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code, out, err = run(capsys, "--output", str(tmp_path / "run"), *options)
    assert code == 2
    assert out == ""
    assert words in err
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_folder_of_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ("--epochs", "1", "--schedule", "uniform:int4", "--output", str(tmp_path))
    assert run(capsys, *options)[0] == 0
    code, _, err = run(capsys, *options, "--seed", "5")
    assert code == 2
    assert "other settings" in err
    (tmp_path / "checkpoint.safetensors").write_bytes(b"cut")
    code, _, err = run(capsys, *options)
    assert code == 2
    assert "checkpoint" in err
