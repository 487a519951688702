"""`geoquant quantize --transform`: from the option to the file, with what was done and left on standard error."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from geoquant.cli import main

NETS = str(Path(__file__).parents[1] / "nets.py")


def run(capsys: pytest.CaptureFixture[str], output: Path, *words: str) -> tuple[int, str, str]:
    common = ["quantize", f"{NETS}:small_net", "--data", f"{NETS}:small_batches", "--predictors", "weight_error"]
    with pytest.raises(SystemExit) as stop:
        main([*common, "--bytes", "3000", "--json", "--output", str(output), *words])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_transforms_are_applied_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--transform", "equalize", "--transform", "awq", "--activations", "int4:affine"]
    code, out, err = run(capsys, tmp_path / "with", *words)
    assert code == 0
    assert "equalize: " in err
    assert re.search("left .*block.*: 'add_' reads it", err)
    assert "awq: " in err
    assert (tmp_path / "with" / "model.safetensors").stat().st_size == json.loads(out)["bytes"] <= 3000


def test_a_name_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, tmp_path / "out", "--transform", "equalise")
    assert code == 2
    assert "no transform named 'equalise' (did you mean 'equalize'?)" in err
    assert not (tmp_path / "out").exists()
