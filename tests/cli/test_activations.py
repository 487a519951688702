"""Activation grids on the command line: from the option to the bytes on disk and the evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geoquant.cli import main

NETS = str(Path(__file__).parents[1] / "nets.py")
MODEL, DATA = f"{NETS}:small_net", f"{NETS}:small_batches"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


SETTINGS: dict[str, tuple[list[str], dict[str, str]]] = {
    "one": (["int8:affine"], {"stem": "int8:affine", "block": "int8:affine", "head": "int8:affine"}),
    "range": (
        ["int8:affine", "head=int4:token", "--activation-range", "minmax"],
        {"stem": "int8:affine:minmax", "block": "int8:affine:minmax", "head": "int4:token"},
    ),
    "operands": (["re:add.*=int8", "block=none"], {"add:0": "int8", "add:1": "int8"}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_from_the_option_to_the_disk(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, wanted = SETTINGS[name]
    items = [word for item in words[:2] if not item.startswith("--") for word in ("--activations", item)] + words[2:]
    common = ["quantize", MODEL, "--data", DATA, "--predictors", "weight_error", "--output", str(tmp_path / "out")]
    code, out, _ = run(capsys, *common, "--bytes", "3000", *items, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["activations"] == wanted
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == document["bytes"] <= 3000
    evaluated = ["evaluate", str(tmp_path / "out"), "--model", MODEL, "--data", DATA, "--normalize", "none", "--json"]
    code, out, _ = run(capsys, *evaluated)
    assert code == 0
    assert json.loads(out)["bytes"] == document["bytes"]
    code, out, _ = run(capsys, "plan", "show", str(tmp_path / "out" / "plan.json"))
    assert f"{len(wanted)} quantized activations" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--activation-range", "mse"], "give --activations too"),
        (["--activations", "int8:channel"], "no option 'channel'"),
        (["--activations", "nowhere=int8"], "nowhere"),
        (["--activations", "int8", "--activation-range", "entropi"], "did you mean 'entropy'"),
    ],
)
def test_mistakes_get_a_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["quantize", MODEL, "--data", DATA, "--average-bits", "4", "--output", str(tmp_path / "out")]
    code, _, err = run(capsys, *common, *words)
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())
