"""8-bit weights beside static activations: types for any processor or for VNNI, the same numbers, who may run them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as runtime
import pytest
import torch
from torch import Tensor, nn

from export.contract import check_exporter
from geoquant.errors import ExportError
from geoquant.export import EXPORTERS, int8_overflows
from geoquant.export import onnx as export_onnx
from geoquant.export.onnx_session import feeds, run_exactly
from geoquant.export.onnx_types import choose
from geoquant.models import inference
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize
from nets import small_batches, small_net

STATIC = {"re:.*": "int8:affine"}


def full_net() -> nn.Module:
    """Return two convolutions whose weights are all near the largest level, so that pairs of products add up."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.9, 1.0)
    return net.eval()


def full_images() -> Tensor:
    return torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.9


def exported(path: Path, grid: str, **options: Any) -> tuple[Tensor, Any]:
    """Return logits of the quantized torch model, and what was written at `path`."""
    net, images = full_net(), full_images()
    plan = uniform_plan(net, grid, activations=STATIC)
    net = quantize(net, plan, [images])
    written = export_onnx(net, plan, path, example=images, **options)
    with inference(net):
        return net(images), written


def ordinary(path: Path) -> tuple[Tensor, Counter[str]]:
    """Return logits of an optimized session, and how often it runs each operator."""
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, feeds(session, full_images()))[0])
    return found, Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize(
    ("grid", "portable", "vnni"),
    [
        ("int8", ("uint8", 128), ("int8", 0)),
        ("int8:narrow", ("uint8", 128), ("int8", 0)),
        ("int8:affine", ("uint8", 0), ("int8", -128)),
        ("int7", ("int8", 0), ("int8", 0)),
        ("int6:affine", ("uint8", 0), ("uint8", 0)),
        ("int16", ("int16", 0), ("int16", 0)),
    ],
)
def test_types_beside_static_activations(grid: str, portable: tuple[str, int], vnni: tuple[str, int]) -> None:
    plan = uniform_plan(small_net(), grid, activations=STATIC)
    for kernels, expected in (("portable", portable), ("vnni", vnni)):
        choices, _ = choose(plan, None, "auto", kernels)
        assert {(choice.type.name, choice.shift) for choice in choices} == {expected}
    assert choose(plan, None, "auto") == choose(plan, None, "auto", "portable")


@pytest.mark.parametrize("activations", [None, "int8:affine:dynamic", "int16"])
def test_nothing_to_choose_where_no_integer_kernel_runs(activations: str | None) -> None:
    plan = uniform_plan(small_net(), "int8", activations=activations)
    assert choose(plan, None, "auto", "vnni") == choose(plan, None, "auto", "portable")


@pytest.mark.parametrize("grid", ["int8", "int8:affine", "int8:tensor", "int8:group16"])
def test_laws(grid: str, tmp_path: Path) -> None:
    plan = uniform_plan(small_net(), grid, activations=STATIC)
    check_exporter(EXPORTERS["onnx"], small_net, plan, small_batches()[0], tmp_path / "new", kernels="vnni")


@pytest.mark.parametrize("grid", ["int8", "int8:affine"])
def test_both_kinds_hold_the_same_numbers(grid: str, tmp_path: Path) -> None:
    portable = exported(tmp_path / "portable.onnx", grid)[1]
    vnni = exported(tmp_path / "vnni.onnx", grid, kernels="vnni")[1]
    images = full_images()
    assert torch.equal(run_exactly(tmp_path / "portable.onnx")(images), run_exactly(tmp_path / "vnni.onnx")(images))
    zeros = 8 if grid == "int8" else 0  # a byte for each channel, which only uint8 needs
    assert [layer.bytes - zeros for layer in portable.layers] == [layer.bytes for layer in vnni.layers]


@pytest.mark.parametrize("grid", ["int8", "int8:affine"])
def test_who_may_run_them(grid: str, tmp_path: Path) -> None:
    def off() -> float:
        found, kinds = ordinary(tmp_path / "x.onnx")
        assert kinds["QLinearConv"] == 1  # the second gives logits in float
        return float((found - expected).abs().max() / expected.abs().max())

    expected, _ = exported(tmp_path / "x.onnx", grid)
    assert off() < 0.02, "portable files run right on any processor"
    expected, _ = exported(tmp_path / "x.onnx", grid, kernels="vnni")
    found = off()
    assert found > 0.1 if int8_overflows() else found < 0.02


def test_reasons_and_notes_say_where_they_may_run(tmp_path: Path) -> None:
    _, portable = exported(tmp_path / "portable.onnx", "int8")
    assert all("with zero points" in layer.reason for layer in portable.layers)
    assert any("2 layers" in note and "right on every processor" in note for note in portable.notes)
    _, vnni = exported(tmp_path / "vnni.onnx", "int8:fp32", kernels="vnni")
    assert all("for processors with VNNI" in layer.reason for layer in vnni.layers)
    assert any("2 layers" in note and "do not run the file on x86 without it" in note for note in vnni.notes)
    _, seven = exported(tmp_path / "seven.onnx", "int7", kernels="vnni")
    assert not any("VNNI" in text for text in (*seven.notes, *(layer.reason for layer in seven.layers)))


def test_kernels_that_are_unknown() -> None:
    with pytest.raises(ExportError, match=r"^kernels='avx512' is unknown; choose portable, vnni$"):
        choose(uniform_plan(small_net(), "int8"), None, "auto", "avx512")
