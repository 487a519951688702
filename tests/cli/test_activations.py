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
        (["--activation-grids", "int4:affine"], "--activation-grids offers a choice"),
        (["--activation-bits", "3", "--activation-grids", "int4:affine"], "which takes 4 average activation bits"),
        (["--activation-bits", "4", "--activation-sites", "nowhere"], "nowhere"),
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


def test_both_are_chosen_from_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grids = ["--grids", "int2,int4,int8", "--activation-grids", "int2:affine,int4:affine,int8", "--no-geometry"]
    words = ["profile", MODEL, "--data", DATA, *grids, "--activation-sites", "re:.*", "--output", str(tmp_path)]
    code, out, err = run(capsys, *words)
    assert code == 0
    assert "activations: 5 sites × 3 grids, about" in err
    assert "one_input_kl in nats" in out
    allocated = ["allocate", str(tmp_path), "--output", str(tmp_path / "plan.json"), "--json"]
    limits = ["--bit-operations", "8e5", "--activation-bits", "5", "--average-bits", "6"]
    code, out, _ = run(capsys, *allocated, *limits, "--activations", "add:0=int8", "--activations", "add:1=int4:affine")
    assert code == 0
    document = json.loads(out)
    assert document["bit_operations"] <= 8e5
    assert document["average_activation_bits"] <= 5
    assert document["average_bits"] <= 6
    assert list(document["activations"]) == ["stem", "block", "head", "add:0", "add:1"]
    assert document["activations"]["add:0"] == "int8"
    assert document["optimality"]["gap"] <= 1e-6
    code, out, _ = run(capsys, "plan", "show", str(tmp_path / "plan.json"))
    assert code == 0
    assert "its damage" in out
    assert "input at " in out


def test_both_are_chosen_on_the_way_to_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--average-bits",
        "4.5",
        "--activation-bits",
        "5",
        "--activations",
        "head=none",
        "--activation-range",
        "minmax",
    ]
    common = ["quantize", MODEL, "--data", DATA, "--grids", "int3,int4,int8", "--output", str(tmp_path / "out")]
    code, out, _ = run(capsys, *common, *words, "--activation-sites", "stem", "--activation-sites", "block", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["average_bits"] <= 4.5
    assert document["average_activation_bits"] <= 5
    assert set(document["activations"]) == {"stem", "block"}
    assert all(grid.endswith("minmax") for grid in document["activations"].values())
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == document["bytes"]
    code, _, err = run(capsys, *common, "--plan", str(tmp_path / "out" / "plan.json"), "--activation-bits", "4")
    assert code == 2
    assert "a plan has its activations" in " ".join(err.replace("│", " ").split())
