"""The folder that transformers and vLLM read: identical logits there, and a clear word about everything else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import geoquant as gq
from geoquant.errors import ExportError, FileFormatError, OutputError, PlanError, WeightsError
from geoquant.export import EXPORTERS, CompressedTensors, export_model
from geoquant.grids import Grid
from geoquant.models import Site, load_pretrained
from geoquant.plan import Plan, uniform_plan
from geoquant.quantize import quantize
from llamas import tiny_llama, tokens

STORIES = Path(os.environ.get("GEOQUANT_WEIGHTS_DIR", "/nonexistent")) / "stories260K"
ALIKE = {"re:.*_proj": "int4", "re:.*(q|k|v)_proj": "int8", "re:.*down_proj": "int3"}


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def exported(model: nn.Module, plan: Plan, folder: Path, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Return the quantized model, and what transformers makes of its folder."""
    net = quantize(model, plan)
    gq.export.compressed_tensors(net, plan, folder, **options)
    attention = model.config._attn_implementation  # which a folder does not say
    return net, transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": "int4", "exceptions": ALIKE},
        {"grid": "int4:affine:group32", "exceptions": {"re:.*_proj": "int3:affine", "re:.*mlp.*": "int7:affine"}},
        {"grid": "ternary", "exceptions": {"re:.*mlp.*": "binary:group16", "re:.*self_attn.*": "int5:tensor"}},
        {"grid": "int2:mse-signed", "exceptions": {"re:.*mlp.*": "int6:narrow", "lm_head": "fp16"}},
        {"grid": "int7:group32:e8m0:mse", "exceptions": {"lm_head": "fp32", "model.embed_tokens": "bf16"}},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_computes_identical_logits(tmp_path: Path, settings: dict[str, Any], tied: bool) -> None:
    model = tiny_llama(tied=tied)
    if tied:
        settings = {**settings, "exceptions": {k: v for k, v in settings["exceptions"].items() if k != "lm_head"}}
    net, loaded = exported(model, uniform_plan(model, **settings), tmp_path / "out")
    assert torch.equal(logits(net, tokens()), logits(loaded, tokens()))


def test_half_precision_models_need_scales_of_their_dtype(tmp_path: Path) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    net, loaded = exported(model, uniform_plan(model, "int5:bf16"), tmp_path / "bf16")
    assert torch.equal(logits(net, tokens()), logits(loaded, tokens()))
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    plan = uniform_plan(model, "int5:fp16")
    with pytest.raises(ExportError, match=r"'model\.layers\.0\.self_attn\.q_proj'.*fp16 scales.*bfloat16"):
        export_model(quantize(model, plan), plan, tmp_path / "fp16", "compressed-tensors")
    assert not (tmp_path / "fp16").exists()


def test_dead_rows_have_scale_zero_and_survive(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3:7] = 0
    for name, grid in enumerate(("int4", "int4:affine")):
        net, loaded = exported(model, uniform_plan(model, grid), tmp_path / str(name))
        assert torch.equal(logits(net, tokens()), logits(loaded, tokens()))


def test_zero_points_are_kept_for_vllm_on_request(tmp_path: Path) -> None:
    model = tiny_llama()
    plan = uniform_plan(model, "int4:affine:group32", {"re:.*mlp.*": "int8:affine"})
    with pytest.raises(ExportError, match="a ninth bit"):
        CompressedTensors().layers(plan)
    net = quantize(model, plan)
    contents = export_model(net, plan, tmp_path / "out", "compressed-tensors", zero_points="keep")
    assert {layer.stored for layer in contents.layers} == {"int4 affine", "int8 affine", "float32"}
    run = EXPORTERS["compressed-tensors"].load(tmp_path / "out", tiny_llama(seed=3))
    assert torch.equal(run(tokens()), logits(net, tokens()))
    with pytest.raises(ExportError, match="zero_points=drop"):
        CompressedTensors().layers(plan, zero_points="drop")


def test_the_configuration_names_every_module_once(tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    exported(model, uniform_plan(model, "int4", ALIKE), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    stated = config["quantization_config"]
    named = [target for group in stated["config_groups"].values() for target in group["targets"]]
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(named) == len(set(named))
    assert set(named) | set(stated["ignore"]) == linears | {"model.embed_tokens"}
    assert not set(named) & set(stated["ignore"])
    assert (stated["quant_method"], stated["format"], stated["quantization_status"]) == (
        "compressed-tensors",
        "pack-quantized",
        "compressed",
    )
    assert {group["weights"]["num_bits"] for group in stated["config_groups"].values()} == {3, 4, 8}
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert (tmp_path / "out" / "generation_config.json").exists()


def test_joined_layers_must_be_packed_alike(tmp_path: Path) -> None:
    model = tiny_llama()
    plan = uniform_plan(model, "int4", {"model.layers.1.self_attn.k_proj": "int3", "re:.*1.*up_proj": "int4:affine"})
    message = r"vLLM joins model\.layers\.1\.self_attn\.q_proj \(int4\) and .*k_proj \(int3\).*2 such groups"
    with pytest.raises(ExportError, match=message):
        CompressedTensors().layers(plan)
    net, loaded = exported(model, plan, tmp_path / "out", fused="none")
    assert torch.equal(logits(net, tokens()), logits(loaded, tokens()))
    with pytest.raises(ExportError, match="matches no layer"):
        CompressedTensors().layers(plan, fused="re:(.*)nothing")
    alike = uniform_plan(model, "int4", {"re:.*k_proj": "int4:maxabs", "re:.*up_proj": "int4:narrow"})
    assert CompressedTensors().layers(alike)  # how scales were found does not matter to an engine


def test_allocation_keeps_joined_layers_together() -> None:
    model = tiny_llama()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(4 if "k_proj" in name or "up_proj" in name else 1)
    profile = gq.profile(model, [tokens()], grids=["int2", "int4", "int8"], predictors=["weight_error"])
    free = gq.allocate(profile, gq.Budget(average_bits=4.6))
    plan = gq.allocate(profile, gq.Budget(average_bits=4.6), fused=["llama"])
    assert len(set(plan.names)) > 1
    with pytest.raises(ExportError, match="vLLM joins"):
        CompressedTensors().layers(free)
    assert CompressedTensors().layers(plan)


@pytest.mark.parametrize(
    ("site", "grid", "message"),
    [
        (Site("a.b", "a.b.weight", "linear", (8, 60)), "int4:group32", "'a.b' has rows of 60 weights"),
        (Site("a.b", "a.b.weight", "linear", (8, 64)), "int16", "'a.b' is on the grid int16"),
        (Site("a.b", "a.b.weight", "linear", (8, 64)), "fp8_e4m3", "'a.b' is on the grid fp8_e4m3"),
        (Site("a.b", "a.b.weight", "linear", (8, 64)), "fp4_e2m1", "'a.b' is on the grid fp4_e2m1"),
        (Site("a.b", "a.b.weight", "linear", (8, 64), "columns"), "int4", r"'a.b' is a linear weight \(columns\)"),
        (Site("a.b", "a.b.weight", "conv", (8, 4, 3, 3)), "int4", "'a.b' is a conv weight"),
        (Site("a.b", "a.b.weight", "linear", (8, 64), aliases=("c.weight",)), "int4", "'a.b' is shared"),
    ],
)
def test_what_cannot_be_packed_is_named(site: Site, grid: str, message: str) -> None:
    from geoquant.export.pack_quantized import packing

    with pytest.raises(ExportError, match=message):
        packing(site, Grid.parse(grid))


def test_sharded_folders_are_the_same_model(tmp_path: Path) -> None:
    model = tiny_llama()
    net, loaded = exported(model, uniform_plan(model, "int4"), tmp_path / "out", shard_bytes=9000)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(logits(net, tokens()), logits(loaded, tokens()))
    contents = EXPORTERS["compressed-tensors"].contents(tmp_path / "out")
    assert f"{len(shards)} of {len(shards)}" in contents.notes[0]
    shards[1].unlink()
    with pytest.raises(FileFormatError, match=f"lacks 1 of {len(shards)} weight files"):
        EXPORTERS["compressed-tensors"].contents(tmp_path / "out")


def test_tampering_is_noticed(tmp_path: Path) -> None:
    model = tiny_llama()
    exported(model, uniform_plan(model, "int4"), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(FileFormatError, match="was changed"):
        EXPORTERS["compressed-tensors"].contents(tmp_path / "out")


def test_folders_of_other_tools_are_read_without_a_checksum(tmp_path: Path) -> None:
    model = tiny_llama()
    net, _ = exported(model, uniform_plan(model, "int4"), tmp_path / "out")
    file, config = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "config.json"
    save_file(load_file(file), file, {"format": "pt"})
    document = json.loads(config.read_text())
    group = document["quantization_config"]["config_groups"]["group_0"]
    group["targets"] = ["Linear"]
    config.write_text(json.dumps(document))
    exporter = EXPORTERS["compressed-tensors"]
    contents = exporter.contents(tmp_path / "out")
    assert {layer.stored for layer in contents.layers} == {"int4"}
    assert "no checksum" in contents.notes[0]
    assert torch.equal(exporter.load(tmp_path / "out", tiny_llama(seed=5))(tokens()), logits(net, tokens()))
    with pytest.raises(WeightsError, match="does not fit"):
        exporter.load(tmp_path / "out", tiny_llama(num_hidden_layers=1))
    group["format"] = "float-quantized"
    config.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="form float-quantized"):
        exporter.contents(tmp_path / "out")


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    exported(model, uniform_plan(model, "int4"), tmp_path / "out", shard_bytes=9000)
    index = tmp_path / "out" / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"] = dict.fromkeys(document["weight_map"], "../../secret.safetensors")
    index.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="must name files beside it"):
        EXPORTERS["compressed-tensors"].contents(tmp_path / "out")


def test_nothing_is_overwritten_and_options_are_checked(tmp_path: Path) -> None:
    model = tiny_llama()
    plan = uniform_plan(model, "int4")
    net = quantize(model, plan)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="something of that name"):
        export_model(net, plan, tmp_path / "full", "compressed-tensors")
    for options, message in (
        ({"shard_bytes": "much"}, "no number of bytes"),
        ({"tokenizer": str(tmp_path)}, "holds no"),
    ):
        with pytest.raises(ExportError, match=message):
            export_model(net, plan, tmp_path / "new", "compressed-tensors", **options)
    with pytest.raises(PlanError, match="another plan"):
        export_model(net, uniform_plan(model, "int3"), tmp_path / "new", "compressed-tensors")
    floats = uniform_plan(model, "fp32")
    unpacked = quantize(model, floats)
    with pytest.raises(ExportError, match="all stay in float"):
        export_model(unpacked, floats, tmp_path / "new", "compressed-tensors")
    quantized_inputs = uniform_plan(model, "int4", activations={"lm_head": "int8"})
    with pytest.raises(ExportError, match="quantizes activations"):
        CompressedTensors().layers(quantized_inputs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


@pytest.mark.skipif(not STORIES.exists(), reason="needs GEOQUANT_WEIGHTS_DIR with stories260K")
def test_stories_tell_the_same_story(tmp_path: Path) -> None:
    model = load_pretrained(STORIES)
    net, loaded = exported(model, uniform_plan(model, "int4", ALIKE), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_cache"] is True
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer("Once upon a time there was a dragon", return_tensors="pt")
    assert torch.equal(
        logits(net, {"input_ids": batch["input_ids"]}), logits(loaded, {"input_ids": batch["input_ids"]})
    )
    wanted, found = (each.generate(batch["input_ids"], max_new_tokens=20, do_sample=False) for each in (net, loaded))
    assert torch.equal(wanted, found)
