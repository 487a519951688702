"""Language models on the command line: profile, allocate, quantize, evaluate, before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geoquant.cli import main
from language import TEXT, write_folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_folder(tmp_path / "net")
    (tmp_path / "train.txt").write_text(TEXT[:800], encoding="utf-8")
    (tmp_path / "test.txt").write_text(TEXT[800:1100], encoding="utf-8")
    return tmp_path


def test_profile_allocate_quantize_evaluate_a_folder(place, capsys):
    net, train, test = (str(place / name) for name in ("net", "train.txt", "test.txt"))
    few = ["--samples", "6", "--batch-size", "3", "--window", "24"]
    code, out, err = run(
        capsys, "profile", net, "--data", train, *few, "--no-geometry", "--output", str(place / "prof"), "--json"
    )
    assert code == 0, err
    rows = json.loads(out)["tables"]["one_layer_kl"]
    assert len(rows) == 1 + 2 * 7  # the tied head is no site of its own
    assert rows[0][0] > rows[0][-1] > 0  # 2 bits of the embedding hurt more than 8
    plan = str(place / "plan.json")
    code, _, err = run(capsys, "allocate", str(place / "prof"), "--average-bits", "5", "--output", plan)
    assert code == 0, err
    for rounding in ("gptq", "nearest"):
        out_folder = str(place / rounding)
        settings = ["--plan", plan, "--rounding", rounding, "--output", out_folder, "--json"]
        code, out, err = run(capsys, "quantize", net, "--data", train, *few, *settings)
        assert code == 0, err
        assert json.loads(out)["bytes"] == (place / rounding / "model.safetensors").stat().st_size
    code, out, err = run(
        capsys, "evaluate", out_folder, "--model", net, "--data", test, "--window", "24", "--stride", "8", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["float"]["predictions"] == found["quantized"]["predictions"] == 300  # BOS predicts the first byte
    assert found["float"]["perplexity"] != found["quantized"]["perplexity"]
    code, out, err = run(capsys, "evaluate", net, "--data", test, "--kv-bits", "2")
    assert code == 0, err
    assert out.count("perplexity") == 2
    assert "2-bit cache" in out


def test_a_classifier_goes_the_same_way(place, capsys):
    bert = str(write_folder(place / "bert", "bert"))
    lines = [f"{TEXT[start : start + 5 + start % 20]}".strip() for start in range(0, 600, 25)]
    (place / "plain.txt").write_text("\n".join(lines), encoding="utf-8")
    labelled = [f"{index % 3}\t{line}" for index, line in enumerate(lines)]
    (place / "labelled.txt").write_text("\n".join(labelled), encoding="utf-8")
    out = str(place / "out")
    few = ["--samples", "6", "--grids", "int2,int3,int6"]
    for calibration in ("plain.txt", "labelled.txt"):
        common = ["--data", str(place / calibration), "--average-bits", "6", "--output", out, *few]
        code, _, err = run(capsys, "quantize", bert, *common)
        assert code == 0, err
    code, text, err = run(capsys, "evaluate", out, "--model", bert, "--data", str(place / "labelled.txt"), "--json")
    assert code == 0, err
    found = json.loads(text)
    assert found["float"]["predictions"] == found["quantized"]["predictions"] == len(lines)
    assert found["float"]["cross_entropy"] != found["quantized"]["cross_entropy"]
    code, text, err = run(capsys, "evaluate", out, "--model", bert, "--data", str(place / "labelled.txt"))
    assert code == 0, err
    assert "perplexity" not in text
    code, _, err = run(capsys, "evaluate", out, "--model", bert, "--data", str(place / "plain.txt"))
    assert code == 2
    assert "targets" in err
    code, _, err = run(capsys, "evaluate", bert, "--data", str(place / "labelled.txt"), "--kv-bits", "4")
    assert code == 2
    assert "keeps no keys and values" in err


def test_keys_and_values_are_in_the_plan_and_in_the_artifact(place, capsys):
    net, out = str(place / "net"), str(place / "out")
    few = ["--samples", "4", "--window", "24", "--grids", "int4,int6"]
    common = ["quantize", net, "--data", str(place / "train.txt"), *few, "--average-bits", "6", "--output", out]
    code, text, err = run(capsys, *common, "--kv-bits", "3")
    assert code == 0, err
    assert text.count("cache:") == 4
    assert text.count("int3:affine:token") == 4
    code, text, err = run(capsys, "evaluate", out, "--model", net, "--data", str(place / "test.txt"), "--json")
    assert code == 0, err
    assert json.loads(text)["cache_bits_per_token"] == 2 * 2 * (8 * 3 + 32 + 3)
    code, text, err = run(capsys, *common, "--stream", "--kv-bits", "3")
    assert code == 2
    assert "--stream goes without --kv-bits" in err


def test_streaming_on_the_command_line(place, capsys):
    net, train, out = (str(place / name) for name in ("net", "train.txt", "out"))
    few = ["--samples", "4", "--window", "24", "--grids", "int3,int5"]
    common = ["quantize", net, "--stream", "--average-bits", "5", "--output", out]
    code, text, err = run(capsys, *common, "--data", train, *few, "--json")
    assert code == 0, err
    assert json.loads(text)["bytes"] == (place / "out" / "model.safetensors").stat().st_size
    assert "2 blocks" in err
    code, text, err = run(capsys, "evaluate", out, "--model", net, "--data", str(place / "test.txt"))
    assert code == 0, err
    for option in (["--effort", "best"], ["--max-drop", "1"], ["--fold-batch-norm"]):
        code, _, err = run(capsys, *common, *option)
        assert code == 2
        assert f"--stream goes without {option[0]}" in err
    code, _, err = run(capsys, "quantize", "geoquant.models.zoo:mlp3_mnist", *common[2:])
    assert code == 2
    assert "has no config.json" in err


def test_bad_input_is_one_sentence(place, capsys):
    net = str(place / "net")
    code, _, err = run(capsys, "evaluate", net, "--data", str(place / "absent.txt"))
    assert code == 2
    assert "no text file" in err
    (place / "net" / "tokenizer.json").unlink()
    (place / "net" / "tokenizer_config.json").unlink()
    code, _, err = run(capsys, "evaluate", net, "--data", str(place / "test.txt"))
    assert code == 2
    assert "holds no tokenizer" in err
