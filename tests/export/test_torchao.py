"""torchao: its tensors with our codes compute our logits; its own fit agrees where the grid is its own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torchao import quantization as ao

import geoquant as gq
from geoquant.errors import ExportError, FileFormatError, UnknownNameError, WeightsError
from geoquant.export import EXPORTERS, TorchAo, torchao_config
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize, quantized_state
from llamas import tiny_llama, tokens
from nets import small_net


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


@pytest.mark.parametrize(
    ("grid", "exceptions"),
    [
        ("int4:maxabs:fp32", {"2": "int8:maxabs:fp32", "4": "fp32"}),
        ("int3:maxabs:fp32:group32", {"2": "int5:maxabs:fp32:group16"}),
        ("int4:affine:maxabs:fp32", {"2": "int2:affine:maxabs:fp32:group32"}),
    ],
)
def test_torchao_fits_max_abs_grids_alike(grid: str, exceptions: dict[str, str]) -> None:
    plan = uniform_plan(mlp(), grid, exceptions)
    ours, theirs = quantize(mlp(), plan), mlp()
    ao.quantize_(theirs, torchao_config(plan), filter_fn=None)
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    ties = 0
    for name, matrix in ((site.name, quantized_state(ours).matrices[site.parameter]) for site in plan.inventory.sites):
        weight, wanted = mlp().get_submodule(name).weight, ours.get_submodule(name).weight
        found = theirs.get_submodule(name).weight
        found = found if type(found.data) is Tensor else found.dequantize()
        other = (found - wanted).abs() > 1e-5 * wanted.abs().max()
        assert torch.allclose((weight - found)[other].abs(), (weight - wanted)[other].abs(), rtol=1e-4), "no tie"
        assert int(other.sum()) <= matrix.scales.scale.numel()  # the largest weight of a row or group at most
        ties += int(other.sum())
    assert ties > 0 or torch.allclose(theirs(x), ours(x), rtol=1e-4, atol=1e-5)
    assert ties == 0 or ":affine" not in grid


def test_the_configuration_names_packed_layers_only() -> None:
    plan = uniform_plan(tiny_llama(), "int4:group32", {"re:.*mlp.*": "int3:affine", "lm_head": "bf16"})
    config = plan.to_torchao().fqn_to_config
    assert set(config) == {name for name in plan.inventory.names if "proj" in name}
    assert config["model.layers.0.mlp.up_proj"].weight_dtype == torch.int3
    assert config["model.layers.0.mlp.up_proj"].mapping_type == ao.MappingType.ASYMMETRIC
    assert config["model.layers.1.self_attn.q_proj"].granularity == ao.PerGroup(32)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"grid": "int4", "exceptions": {"re:.*mlp.*": "int3:affine:group32", "lm_head": "ternary"}}, torch.float32),
        ({"grid": "int8:affine", "exceptions": {"re:.*mlp.*": "int2:tensor"}}, torch.float32),
        ({"grid": "int5:fp16", "exceptions": {"re:.*mlp.*": "int6:bf16"}}, torch.bfloat16),
    ],
)
def test_transformers_computes_identical_logits(tmp_path: Path, settings: dict[str, Any], dtype: torch.dtype) -> None:
    model = tiny_llama(dtype=dtype)
    plan = uniform_plan(model, **settings)
    net = quantize(model, plan)
    gq.export.torchao(net, plan, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert type(loaded.model.layers[0].mlp.up_proj.weight.data).__name__ == "IntxUnpackedToInt8Tensor"
    assert torch.equal(logits(net, tokens()), logits(loaded, tokens()))


def test_what_torchao_cannot_hold_is_named(tmp_path: Path) -> None:
    for plan, message in (
        (uniform_plan(small_net(), "int4"), "'stem' is a conv weight"),
        (uniform_plan(mlp(), "int16"), "'0' is on the grid int16"),
        (uniform_plan(mlp(), "int4", activations="int8"), "hold weights only"),
    ):
        with pytest.raises(ExportError, match=message):
            TorchAo().layers(plan)
        with pytest.raises(ExportError, match=message):
            torchao_config(plan)
    layer = nn.Linear(8, 4)
    plan = uniform_plan(layer, "int4")
    net = quantize(layer, plan)
    with pytest.raises(ExportError, match="belongs to no layer"):
        gq.export.torchao(net, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_said_of_the_tensors_is_under_the_checksum(tmp_path: Path) -> None:
    plan = uniform_plan(mlp(), "int4")
    gq.export.torchao(quantize(mlp(), plan), plan, tmp_path / "out")
    exporter = EXPORTERS["torchao"]
    with pytest.raises(WeightsError, match="does not fit"):
        exporter.load(tmp_path / "out", nn.Sequential(nn.Linear(64, 10)))
    file = tmp_path / "out" / "model.safetensors"
    whole = file.read_bytes()
    for old, new in ((b"int4\\", b"int7\\"), (b'block_size\\": [1, 64]', b'block_size\\": [1, 32]')):
        assert old in whole
        file.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(FileFormatError, match="was changed"):
            exporter.contents(tmp_path / "out")
    file.write_bytes(whole)
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    other = copy.deepcopy(document)
    other["quantization_config"]["quant_method"] = "awq"
    (tmp_path / "out" / "config.json").write_text(json.dumps(other))
    with pytest.raises(FileFormatError, match="does not name torchao"):
        exporter.contents(tmp_path / "out")


def test_a_plan_is_told_in_the_words_of_engines_that_are_registered() -> None:
    plan = uniform_plan(mlp(), "int4:maxabs")
    assert set(plan.to("torchao").fqn_to_config) == set(plan.inventory.names)
    with pytest.raises(UnknownNameError, match="no engine configuration named 'torchoa'"):
        plan.to("torchoa")
