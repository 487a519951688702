"""ONNX: the right type and bytes for every grid, exact logits in ONNX Runtime, refusals before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as runtime
import pytest
import torch
from torch import nn

from geoquant.errors import DataError, ExportError, FileFormatError, PlanError
from geoquant.export import EXPORTERS
from geoquant.export import onnx as export_onnx
from geoquant.export.onnx_session import open_session, run_exactly
from geoquant.export.onnx_types import choose
from geoquant.models import inference, take_inventory
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize
from nets import small_batches, small_net

TYPES = {
    "int2": ("int2", 25),
    "int3": ("int4", 21),
    "int4": ("int4", 21),
    "int4:narrow": ("int4", 21),
    "int4:affine": ("uint4", 21),
    "int5": ("int8", 18),
    "int6:affine": ("uint8", 18),
    "int7": ("int8", 18),
    "int8": ("int8", 18),
    "int16": ("int16", 21),
    "binary": ("int2", 25),
    "ternary": ("int2", 25),
    "fp8_e4m3": ("float8e4m3fn", 19),
    "fp8_e5m2": ("float8e5m2", 19),
    "fp4_e2m1": ("float8e4m3fn", 21),  # in groups, which need opset 21
    "fp16": ("float16", 18),
    "bf16": ("bfloat16", 18),
    "fp32": ("float32", 18),
}


class ManyLayers(nn.Module):
    """One layer for each grid, each used in its own way: products, convolutions, transposed ones, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(len(GRIDS)):
            self.add_module(f"linear{index}", nn.Linear(40, 40))
        self.conv = nn.Conv2d(4, 8, 3, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2, bias=False)
        self.plain_up = nn.ConvTranspose2d(6, 4, 2)
        self.attention = nn.MultiheadAttention(40, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(len(GRIDS)):
            x = x + torch.tanh(getattr(self, f"linear{index}")(x))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        y = self.plain_up(torch.tanh(self.up(self.conv(x.reshape(-1, 4, 10, 10).contiguous()))))
        return y.mean((2, 3)) + x.mean((1, 2)).reshape(-1, 1)


GRIDS = [
    *TYPES,
    "int4:tensor",
    "int4:group16",
    "int8:affine:group24",
    "int3:mse-signed",
    "ternary:group8",
    "int2:affine",
]


def test_every_grid_and_layer_computes_what_torch_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ManyLayers().eval()
    others = {"conv": "int4:group6", "up": "int5", "plain_up": "int4:affine", "attention.in_proj": "int4:group8"}
    plan = uniform_plan(net, "int8", {f"linear{i}": grid for i, grid in enumerate(GRIDS)} | others)
    net = quantize(net, plan)
    x = torch.randn(3, 10, 40)
    written = export_onnx(net, plan, tmp_path / "all.onnx", example=x)
    with inference(net):
        expected = net(x)
    found = run_exactly(tmp_path / "all.onnx")(x)
    assert torch.allclose(found, expected, atol=2e-6, rtol=2e-5)
    fused = open_session(tmp_path / "all.onnx").run(None, {"x": x.numpy()})[0]
    assert np.allclose(fused, expected.numpy(), atol=2e-2)
    stored = {layer.name: layer.stored for layer in written.layers}
    assert [stored[f"linear{i}.weight"] for i in range(len(TYPES))] == [name for name, _ in TYPES.values()]
    assert run_exactly(tmp_path / "all.onnx")(x[:1]).shape == (1, 4)


@pytest.mark.parametrize("grid", TYPES)
def test_types_and_opsets(grid: str) -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(72, 8))
    choices, opset = choose(uniform_plan(net, grid), None, "auto")
    assert ({choice.type.name for choice in choices}, opset) == ({TYPES[grid][0]}, TYPES[grid][1])
    name, needed = TYPES[grid]
    if needed > 18:
        with pytest.raises(ExportError, match=rf"opset {needed - 1} has no {name}.*ask for opset {needed}"):
            choose(uniform_plan(net, grid), needed - 1, "auto")
    assert choose(uniform_plan(net, grid), 25, "auto")[1] == 25


def test_bytes_of_known_shapes() -> None:
    net = nn.Sequential(nn.Linear(512, 256, bias=False))
    sizes = {}
    for grid, linears in (("int4", "nbits"), ("int4", "qdq"), ("int4:affine:group64", "nbits"), ("int3", "qdq")):
        (choice,), _ = choose(uniform_plan(net, grid), None, linears)
        sizes[grid, linears] = choice.bytes
    codes = 512 * 256 // 2
    assert sizes == {
        ("int4", "nbits"): codes + 4 * 256 * 4,  # a scale for each block of 128
        ("int4", "qdq"): codes + 4 * 256,
        ("int4:affine:group64", "nbits"): codes + 4 * 256 * 8 + 256 * 4,
        ("int3", "qdq"): codes + 4 * 256,
    }


@pytest.mark.parametrize("opset", [17, 26, 0])
def test_opsets_that_cannot_be_written(opset: int) -> None:
    with pytest.raises(ExportError, match=rf"opset {opset} cannot be written; choose 18 to 25"):
        choose(uniform_plan(small_net(), "int8"), opset, "auto")


def test_large_linears_become_matmulnbits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(300, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 300, bias=False))
    plan = uniform_plan(net.eval(), "int4", {"2": "int8:affine:group32", "4": "int2:affine"})
    net = quantize(net, plan)
    x = torch.randn(5, 300)
    written = export_onnx(net, plan, tmp_path / "a.onnx", accuracy_level=1)
    assert [layer.stored for layer in written.layers] == [f"{t} MatMulNBits" for t in ("int4", "uint8", "uint2")]
    with inference(net):
        expected = net(x)
    assert torch.allclose(run_exactly(tmp_path / "a.onnx")(x), expected, atol=1e-5)
    level_one = open_session(tmp_path / "a.onnx").run(None, {"input": x.numpy()})[0]
    assert np.allclose(level_one, expected.numpy(), atol=1e-5)
    fast = export_onnx(net, plan, tmp_path / "fast.onnx")
    assert any("int8 in blocks" in note for note in fast.notes)
    level_four = open_session(tmp_path / "fast.onnx").run(None, {"input": x.numpy()})[0]
    assert 1e-5 < np.abs(level_four - expected.numpy()).max() < 0.1
    assert torch.allclose(run_exactly(tmp_path / "fast.onnx")(x), expected, atol=1e-5)


def test_static_activations_run_on_integer_kernels_and_the_norm_is_folded(tmp_path: Path) -> None:
    net = small_net()
    batches = small_batches()
    plan = uniform_plan(net, "int8", activations={"re:.*": "int8:affine"})
    net = quantize(net, plan, batches)
    written = export_onnx(net, plan, tmp_path / "a.onnx", example=batches[0])
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    session = runtime.InferenceSession((tmp_path / "a.onnx").read_bytes(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2
    assert "BatchNormalization" not in kinds
    with inference(net):
        expected = net(batches[0][0])
    for found in (
        run_exactly(tmp_path / "a.onnx")(batches[0]).numpy(),
        session.run(None, {"x": batches[0][0].numpy()})[0],
    ):
        assert np.abs(found - expected.numpy()).max() < 0.05 * expected.abs().max()
    assert all("zero points" in layer.reason for layer in written.layers)


def test_eight_bit_weights_that_may_overflow_get_zero_points_and_seven_bit_ones_do_not() -> None:
    for grid, stored in (
        ("int8", "uint8"),
        ("int8:narrow", "uint8"),
        ("int7", "int8"),
        ("int5", "int8"),
        ("int4", "int4"),
    ):
        for activations, expected in (("int8:affine", stored), ("int8:dynamic", None), (None, None)):
            choices, _ = choose(uniform_plan(small_net(), grid, activations=activations), None, "auto")
            assert {choice.type.name for choice in choices} == {expected or stored.replace("uint8", "int8")}


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    net = quantize(small_net(), plan := uniform_plan(small_net(), "int4"))
    export_onnx(net, plan, tmp_path / "a.onnx")
    exporter = EXPORTERS["onnx"]
    whole = (tmp_path / "a.onnx").read_bytes()
    model = onnx.load(tmp_path / "a.onnx")
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(FileFormatError, match="checksum"):
        exporter.contents(tmp_path / "a.onnx")
    model = onnx.ModelProto.FromString(whole)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(FileFormatError, match="list of weights is missing"):
        exporter.load(tmp_path / "a.onnx", small_net())
    (tmp_path / "a.onnx").write_bytes(whole)
    with pytest.raises(DataError, match="takes 1 inputs"):
        exporter.load(tmp_path / "a.onnx", small_net())(((torch.zeros(1, 1, 8, 8), torch.zeros(1)), None))


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum() > 0 else x

    net = Branching().eval()
    net = quantize(net, plan := uniform_plan(net, "int8"))
    with pytest.raises(ExportError, match="cannot trace this model"):
        export_onnx(net, plan, tmp_path / "a.onnx", example=torch.ones(2, 4))
    attention = nn.MultiheadAttention(8, 2).eval()
    attention = quantize(attention, plan := uniform_plan(attention, "int8"))
    with pytest.raises(ExportError, match="example of the model's input"):
        export_onnx(attention, plan, tmp_path / "a.onnx")
    for wrong in ({"opset": 12}, {"linears": "fast"}, {"kernels": "avx"}, {"accuracy_level": 2}):
        with pytest.raises(ExportError):
            export_onnx(net, uniform_plan(net, "int8"), tmp_path / "a.onnx", **wrong)
    with pytest.raises(PlanError, match="another plan"):
        export_onnx(net, uniform_plan(take_inventory(net), "int4"), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
