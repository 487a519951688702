"""The file that llama.cpp runs: exact where blocks allow it, listed where not, and read back by two other readers."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from geoquant.errors import ExportError, FileFormatError, WeightsError
from geoquant.export import EXPORTERS, Gguf, export_model, gguf_types
from geoquant.export.gguf_blocks import pack_blocks, unpack_blocks
from geoquant.export.gguf_llama import gguf_name, interleave
from geoquant.export.gguf_tokens import read_tokens
from geoquant.export.gguf_types import BLOCKS, choose_type
from geoquant.grids import Grid
from geoquant.models import Site
from geoquant.models.zoo import mlp3_mnist
from geoquant.plan import Plan, uniform_plan
from geoquant.quantize import quantize
from llamas import tiny_llama, tokens

STORIES = Path(os.environ.get("GEOQUANT_WEIGHTS_DIR", "/nonexistent")) / "stories260K"
WIDE = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 256}


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def exported(model: nn.Module, plan: Plan, path: Path, **options: Any) -> nn.Module:
    net = quantize(model, plan)
    export_model(net, plan, path, "gguf", **options)
    return net


def read_by_transformers(path: Path, model: nn.Module) -> nn.Module:
    attention = model.config._attn_implementation
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation=attention
    ).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("grid", "mlp", "types"),
    [
        ("int4:group32", "int8", {"Q4_0", "Q8_0"}),
        ("int3:affine:group32", "int5:tensor", {"Q4_0", "Q5_0"}),
        ("int2:mse-signed", "int4:affine:group64", {"Q4_0", "Q5_0"}),
        ("int6:narrow", "int7:affine", {"Q8_0"}),
        ("fp32", "int8:group32:maxabs", {"F32", "Q8_0"}),
    ],
)
def test_transformers_decodes_identical_logits(
    tmp_path: Path, grid: str, mlp: str, types: set[str], tied: bool
) -> None:
    model = tiny_llama(tied=tied)
    plan = uniform_plan(model, grid, {"re:.*mlp.*": mlp})
    net = exported(model, plan, tmp_path / "out.gguf")
    contents = EXPORTERS["gguf"].contents(tmp_path / "out.gguf")
    assert {layer.stored for layer in contents.layers} == types
    loaded = read_by_transformers(tmp_path / "out.gguf", model)
    assert torch.equal(logits(net, tokens()), logits(loaded, tokens()))


@pytest.mark.parametrize("ternary", ["TQ1_0", "TQ2_0"])
def test_ternary_and_binary_weights_are_exact(tmp_path: Path, ternary: str) -> None:
    model = tiny_llama(**WIDE)
    plan = uniform_plan(model, "ternary", {"re:.*mlp.*": "binary:group256", "re:.*down_proj": "ternary:group32"})
    net = exported(model, plan, tmp_path / "out.gguf", ternary=ternary)
    contents = EXPORTERS["gguf"].contents(tmp_path / "out.gguf")
    assert {layer.stored for layer in contents.layers} == {ternary, "Q4_0"}  # groups of 32 fit blocks of 32 only
    assert torch.equal(logits(read_by_transformers(tmp_path / "out.gguf", model), tokens()), logits(net, tokens()))


@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q5_0", 5), ("Q8_0", 8)])
def test_blocks_decode_to_scale_times_level(name: str, bits: int) -> None:
    random = np.random.default_rng(0)
    levels = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, 96)).astype(np.int8)
    scales = random.normal(size=(5, 3)).astype(np.float16)
    packed = pack_blocks(name, levels, scales)
    assert packed.shape == (5, 3 * BLOCKS[name][1])
    expected = levels.astype(np.float32) * np.repeat(scales.astype(np.float32), 32, axis=1)
    assert np.array_equal(unpack_blocks(packed, name), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_block_sizes_are_the_packages(name: str) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == BLOCKS[name]


def test_names_are_the_packages() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for parameter in tiny_llama().state_dict():
        assert gguf_name(parameter) == names.get_name(parameter, try_suffixes=(".weight", ".bias"))


def test_rows_are_ordered_as_llama_cpp_turns_them() -> None:
    """Neighbouring rows of llama.cpp are the pairs that transformers' rotary embedding turns together."""
    heads, size = 4, 16
    order = interleave(heads * size, heads).tolist()
    for head in range(heads):
        for pair in range(size // 2):
            first, second = order[head * size + 2 * pair : head * size + 2 * pair + 2]
            assert (first, second) == (head * size + pair, head * size + pair + size // 2)


@pytest.mark.parametrize(
    ("fan_in", "grid", "kind", "reason"),
    [
        (172, "int4", "F16", "rows of 172 weights"),
        (64, "int4:group16", "F16", "groups of 16 weights"),
        (64, "int4:group48", "F16", "groups of 48 weights"),
        (64, "fp8_e4m3", "F16", "no type of llama.cpp has the levels of fp8_e4m3"),
        (64, "int16", "F32", "exceed the 8 bits"),
        (64, "int8:affine", "F16", "9-bit integers exceed"),
        (64, "ternary", "Q4_0", "1.6-bit codes take 4 bits"),
        (512, "ternary", "TQ1_0", ""),
        (512, "binary", "TQ1_0", "take a trit"),
        (64, "int6", "Q8_0", "6-bit codes take 8"),
        (64, "int4:group128", "Q4_0", ""),
        (64, "bf16", "BF16", ""),
    ],
)
def test_what_becomes_of_a_grid(fan_in: int, grid: str, kind: str, reason: str) -> None:
    choice = choose_type(Site("a", "a.weight", "linear", (8, fan_in)), Grid.parse(grid))
    assert choice.type == kind
    assert reason in choice.reason
    assert bool(reason) == bool(choice.reason)


def test_a_scale_that_float16_cannot_hold_is_rounded_once_or_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    plan = uniform_plan(model, "int8:fp32")
    net = exported(model, plan, tmp_path / "out.gguf")
    found = EXPORTERS["gguf"].load(tmp_path / "out.gguf", tiny_llama(seed=4))(tokens())
    expected = logits(net, tokens())
    assert 0 < float((found - expected).abs().max()) < 2e-3 * float(expected.abs().max())
    with torch.no_grad():
        model.lm_head.weight.mul_(1e9)
    large = uniform_plan(model, "int8:fp32")
    net = quantize(model, large)
    with pytest.raises(ExportError, match="'lm_head' exceed float16"):
        export_model(net, large, tmp_path / "large.gguf", "gguf")
    assert not (tmp_path / "large.gguf").exists()


def test_fallbacks_are_listed_and_chosen(tmp_path: Path) -> None:
    model = tiny_llama(intermediate_size=44)
    plan = uniform_plan(model, "int4")
    assert {name for name, choice in gguf_types(plan).items() if choice.type == "F16"} == {
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
    }
    net = exported(model, plan, tmp_path / "out.gguf", fallback="F32")
    found = EXPORTERS["gguf"].load(tmp_path / "out.gguf", tiny_llama(seed=2, intermediate_size=44))(tokens())
    assert torch.equal(found, logits(net, tokens()))
    contents = EXPORTERS["gguf"].contents(tmp_path / "out.gguf")
    assert {layer.reason for layer in contents.layers if layer.stored == "F32"} == {
        "rows of 44 weights are not whole blocks of 32"
    }
    for option in ("fallback", "ternary"):
        with pytest.raises(ExportError, match=f"{option}=Q9 is not known"):
            Gguf().layers(plan, **{option: "Q9"})


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'fc1' is no layer of a Llama|'.*' is no layer of a Llama"):
        Gguf().layers(uniform_plan(mlp3_mnist(), "int4"))
    scaled = tiny_llama()
    scaled.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    other = tiny_llama()
    other.config.model_type = "qwen2"
    for model, message in ((scaled, "rotary embedding is scaled"), (other, "a qwen2 model")):
        plan = uniform_plan(model, "int4")
        net = quantize(model, plan)
        with pytest.raises(ExportError, match=message):
            export_model(net, plan, tmp_path / "out.gguf", "gguf")
    with pytest.raises(ExportError, match="rules of its own"):
        Gguf().layers(uniform_plan(tiny_llama(), "int4", activations={"lm_head": "int8"}))


def test_every_kind_of_tampering_is_noticed(tmp_path: Path) -> None:
    model = tiny_llama()
    path = tmp_path / "out.gguf"
    exported(model, uniform_plan(model, "int4"), path)
    whole = path.read_bytes()
    exporter = EXPORTERS["gguf"]
    for place in [*range(4, 400, 13), *range(400, len(whole), len(whole) // 25)]:
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(bytes(damaged))
        with pytest.raises(FileFormatError):
            exporter.contents(path)
    path.write_bytes(whole)
    with pytest.raises(WeightsError, match="does not fit"):
        exporter.load(path, tiny_llama(num_hidden_layers=3))


def test_files_of_llama_cpp_are_read_without_a_checksum(tmp_path: Path) -> None:
    """Written with the package alone, types quantized by its own quantizers, of another architecture."""
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gpt2")
    matrix = np.random.default_rng(1).normal(size=(4, 256)).astype(np.float32)
    for name in ("Q4_1", "Q5_1", "Q8_0", "TQ2_0"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(matrix, kind), raw_dtype=kind)
    writer.add_tensor("bias", matrix[0])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    contents = EXPORTERS["gguf"].contents(tmp_path / "other.gguf")
    assert [layer.stored for layer in contents.layers] == ["Q4_1", "Q5_1", "Q8_0", "TQ2_0"]
    assert contents.others == 1024
    assert "no checksum" in contents.notes[0]
    assert "architecture gpt2" in contents.notes[1]


@pytest.mark.skipif(not STORIES.exists(), reason="needs GEOQUANT_WEIGHTS_DIR with stories260K")
def test_stories_keep_their_tokens_and_their_logits(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    net = exported(model, uniform_plan(model, "int4:group32", {"re:.*down_proj": "fp32"}), tmp_path / "out.gguf")
    own = transformers.AutoTokenizer.from_pretrained(STORIES)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="out.gguf")
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    assert own(text)["input_ids"] == theirs(text)["input_ids"]
    batch = {"input_ids": own(text, return_tensors="pt")["input_ids"]}
    assert torch.equal(logits(net, batch), logits(read_by_transformers(tmp_path / "out.gguf", model), batch))


@pytest.mark.skipif(not STORIES.exists(), reason="needs GEOQUANT_WEIGHTS_DIR with stories260K")
def test_scores_order_merges_as_the_tokenizer_does() -> None:
    """Join the best pair first, as llama.cpp does, and compare with the tokenizer itself."""
    found = read_tokens(STORIES, 512)
    assert found is not None
    texts, scores, types = found
    place = {text: number for number, text in enumerate(texts)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES)
    for text in ("Once upon a time", "the dragon was happy and played with the ball", "aaaa bb"):
        parts = list("▁" + text.replace(" ", "▁"))
        while True:
            pairs = [
                (scores[place[a + b]], -at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in place
            ]
            if not pairs:
                break
            at = -max(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        assert [place[part] for part in parts] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert types.count(6) == 256
    assert types[:3] == [2, 3, 3]
