"""The program as a person meets it: results on standard output, one sentence and exit code 2 on bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from geoquant.cli import app, main
from nets import small_net

NETS = str(Path(__file__).parents[1] / "nets.py")
MODEL, DATA = f"{NETS}:small_net", f"{NETS}:small_batches"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def prof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    code, _, err = run(capsys, "profile", MODEL, "--data", DATA, "--output", str(tmp_path / "prof"))
    assert code == 0
    assert "forwards over the calibration set" in err
    return tmp_path / "prof"


def test_profile_allocate_quantize_evaluate_diff(
    prof: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = {}
    for bits in ("3", "4"):
        plans[bits] = tmp_path / f"w{bits}.json"
        code, out, _ = run(
            capsys,
            "allocate",
            str(prof),
            "--average-bits",
            bits,
            "--fix",
            "head=8",
            "--output",
            str(plans[bits]),
            "--json",
        )
        assert code == 0
        assert json.loads(out)["average_bits"] <= float(bits)
        assert json.loads(out)["layers"]["head"] == "int8:mse-signed"
    out_folder = tmp_path / "out"
    code, out, _ = run(capsys, "quantize", MODEL, "--plan", str(plans["4"]), "--output", str(out_folder), "--json")
    assert code == 0
    assert json.loads(out)["bytes"] == (out_folder / "model.safetensors").stat().st_size
    code, out, _ = run(
        capsys, "evaluate", str(out_folder), "--model", MODEL, "--data", DATA, "--normalize", "none", "--json"
    )
    assert code == 0
    assert 0 <= json.loads(out)["quantized"]["accuracy"] <= 1
    code, out, _ = run(capsys, "plan", "diff", str(plans["3"]), str(plans["4"]), "--json")
    assert code == 0
    assert json.loads(out)["layers"]
    code, out, _ = run(capsys, "plan", "show", str(plans["3"]), "--json")
    assert list(json.loads(out)["reasons"]) == list(json.loads(out)["layers"])
    code, out, _ = run(capsys, "plan", "show", str(plans["3"]))
    assert code == 0
    assert "reasons" in out


def test_quantize_within_a_budget_is_profile_allocate_quantize(
    prof: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "allocate", str(prof), "--average-bits", "3.5", "--output", str(tmp_path / "plan.json"))
    common = ["quantize", MODEL, "--data", DATA]
    run(capsys, *common, "--plan", str(tmp_path / "plan.json"), "--output", str(tmp_path / "a"))
    code, _, _ = run(capsys, *common, "--average-bits", "3.5", "--output", str(tmp_path / "b"))
    assert code == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_budget_that_two_bits_and_their_scales_exceed_is_met_with_narrower_grids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", DATA, "--average-bits", "1.9", "--output", str(tmp_path / "a"), "--json"]
    code, out, _ = run(capsys, "quantize", MODEL, *words)
    assert code == 0
    document = json.loads(out)
    assert document["average_bits"] <= 1.9
    assert {"ternary", "binary"} & set(document["layers"].values())


def test_rounding_and_norms_are_chosen_on_the_command_line(
    prof: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "allocate", str(prof), "--average-bits", "2.9", "--output", str(tmp_path / "plan.json"))
    common = ["quantize", MODEL, "--plan", str(tmp_path / "plan.json"), "--output"]
    settings = {
        "blind": [],
        "nearest": ["--data", DATA, "--rounding", "nearest", "--norms", "none"],
        "default": ["--data", DATA],
        "descent": ["--data", DATA, "--rounding", "descent", "--norms", "relative", "--refine", "none"],
        "balanced": ["--data", DATA, "--effort", "balanced"],
        "fast": ["--data", DATA, "--effort", "fast"],
    }
    for name, options in settings.items():
        assert run(capsys, *common, str(tmp_path / name), *options)[0] == 0
    files = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in settings}
    assert files["blind"] == files["nearest"] != files["default"] == files["descent"] == files["balanced"]
    assert files["fast"] not in (files["blind"], files["descent"])
    code, _, err = run(capsys, *common, str(tmp_path / "no"), "--rounding", "gptq")
    assert code == 2
    assert "pass calibration" in err


def test_report_of_a_profile_with_accuracy(prof: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    code, out, _ = run(
        capsys,
        "report",
        str(prof),
        "--model",
        MODEL,
        "--data",
        DATA,
        "--budgets",
        "3,4",
        "--output",
        str(page),
        "--json",
    )
    assert code == 0
    assert json.loads(out)["path"] == str(page)
    assert "weight_error + milp" in page.read_text()


def bad(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Return argument lists that must fail, each with words its sentence must hold."""
    misshapen = small_net().state_dict()
    misshapen["head.weight"] = torch.zeros(5, 9)
    save_file(misshapen, tmp_path / "misshapen.safetensors")
    missing = small_net().state_dict()
    del missing["block.weight"]
    save_file(missing, tmp_path / "missing.safetensors")
    save_file({**small_net().state_dict(), "more": torch.zeros(2)}, tmp_path / "extra.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "extra.safetensors").read_bytes()[:900])
    (tmp_path / "plan.json").write_text('{"format": "geoquant-plan"')
    (tmp_path / "empty.py").write_text("def none(): return []\ndef broken(): raise OSError('no camera')\n")
    common = ["--data", DATA, "--normalize", "none", "--output", str(tmp_path / "out")]
    profile = ["profile", MODEL, *common]
    return {
        "misshapen": ([*profile, "--weights", str(tmp_path / "misshapen.safetensors")], "head.weight"),
        "missing": ([*profile, "--weights", str(tmp_path / "missing.safetensors")], "block.weight"),
        "extra": ([*profile, "--weights", str(tmp_path / "extra.safetensors")], "more"),
        "cut weights": ([*profile, "--weights", str(tmp_path / "cut.safetensors")], "cut.safetensors"),
        "unknown grid": ([*profile, "--grids", "int3,float7"], "float7"),
        "unknown layer": ([*profile, "--only", "sttem"], "sttem"),
        "empty calibration": (["profile", MODEL, "--data", f"{tmp_path}/empty.py:none", *common[2:]], "empty|no batch"),
        "broken data": (["profile", MODEL, "--data", f"{tmp_path}/empty.py:broken", *common[2:]], "no camera"),
        "no such model": (["profile", f"{NETS}:smal_net", *common], "small_net"),
        "cut plan": (["quantize", MODEL, "--plan", str(tmp_path / "plan.json"), *common[4:]], "not a complete JSON"),
        "no layers": (["profile", "torch.nn:ReLU", *common], "quantizable"),
        "not an artifact": (["evaluate", str(tmp_path), "--model", MODEL, *common[:4]], "model.safetensors"),
        "no such folder": (
            ["evaluate", str(tmp_path / "none"), "--model", MODEL, *common[:4]],
            "no folder that `quantize`",
        ),
        "no budget": (["quantize", MODEL, *common], "needs a limit"),
        "tiny budget": (["quantize", MODEL, *common, "--bytes", "10"], "smallest possible plan"),
        "other data": (["evaluate", "geoquant.models.zoo:mlp3_mnist", "--data", "digits"], "fails on the first batch"),
        "other labels": (["evaluate", MODEL, "--data", "digits"], "none of the model's 5 classes"),
    }


CASES = [
    "misshapen",
    "missing",
    "extra",
    "cut weights",
    "unknown grid",
    "unknown layer",
    "empty calibration",
    "broken data",
    "no such model",
    "cut plan",
    "no layers",
    "not an artifact",
    "no such folder",
    "no budget",
    "tiny budget",
    "other data",
    "other labels",
]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_and_exit_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = bad(tmp_path)[case]
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    sentence = next(line for line in err.splitlines() if line.startswith("geoquant: "))
    assert any(word in sentence for word in words.split("|")), sentence
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_read_only_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:  # root writes everywhere: a path below a file fails for everybody
        (tmp_path / "file").write_text("")
        target = tmp_path / "file" / "out"
    else:
        tmp_path.chmod(0o500)
        target = tmp_path / "out"
    code, _, err = run(capsys, "profile", MODEL, "--data", DATA, "--output", str(target))
    assert code == 2
    assert "cannot write" in err


def test_weights_need_a_normalization(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(small_net().state_dict(), tmp_path / "w.safetensors")
    code, _, err = run(
        capsys,
        "profile",
        MODEL,
        "--weights",
        str(tmp_path / "w.safetensors"),
        "--data",
        "digits",
        "--output",
        str(tmp_path),
    )
    assert code == 2
    assert "--normalize" in err


@pytest.mark.parametrize(
    "command", [[], ["plan"], ["plan", "show"], *([each.name] for each in app.registered_commands)], ids=" ".join
)
def test_help_teaches(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert "Usage" in out
    if command not in ([], ["plan"]):
        assert "Example" in out
