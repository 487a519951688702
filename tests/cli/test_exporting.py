"""`geoquant export`: from a folder to a file of an engine, and refusals with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import geoquant as gq
from geoquant.cli import main
from geoquant.models.zoo import mlp3_mnist
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize

MODEL = "geoquant.models.zoo:mlp3_mnist"


def run(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_export_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = mlp3_mnist()
    plan = uniform_plan(net, "int4:group32", {"layers.1": "int3"})
    gq.save(quantize(net, plan), plan, tmp_path / "out")
    words = ["export", str(tmp_path / "out"), "--model", MODEL, "--output"]
    assert run(*words, str(tmp_path / "x.onnx"), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bytes"] == (tmp_path / "x.onnx").stat().st_size
    assert [layer["stored"] for layer in document["layers"]] == ["int4 MatMulNBits", "int4", "int4"]
    assert f"{plan.bytes:,} bytes" in document["notes"][0]
    for more, said in (
        (["--option", "opset=18"], "opset 18 has no int4"),
        (["--option", "opsett=18"], "did you mean 'opset'"),
        (["--option", "kernels=avx2"], "kernels='avx2' is unknown; choose portable, vnni"),
        (["--format", "onxn"], "did you mean 'onnx'"),
    ):
        assert run(*words, str(tmp_path / "y.onnx"), *more) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "y.onnx").exists()
