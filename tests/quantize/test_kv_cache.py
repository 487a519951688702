"""Keys and values in few bits: the same whether tokens come together or one by one, and exactly rounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from geoquant import evaluate
from geoquant.errors import ModelError, PlanError
from geoquant.export import load, save
from geoquant.grids import ActivationGrid
from geoquant.models import cache_sites, load_pretrained, load_tokenizer, take_inventory
from geoquant.plan import uniform_plan
from geoquant.quantize import key_value_bits, key_value_grid, quantize, quantized_keys_and_values
from geoquant.sensitivity import find_activations, measure_activations
from language import tiny, token_batches

TOKENS = token_batches(1, 2, 9)[0]["input_ids"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_a_window_at_once_is_the_same_as_token_by_token(kind):
    from transformers import DynamicCache

    model, parts = tiny(kind), []
    cache = DynamicCache(config=model.config)
    with quantized_keys_and_values(model, key_value_grid(3)):
        whole = model(input_ids=TOKENS).logits
        for place in range(TOKENS.shape[1]):
            token = TOKENS[:, place : place + 1]
            parts.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits)
    assert torch.allclose(whole, torch.cat(parts, 1), atol=2e-4)
    assert not torch.allclose(whole, model(input_ids=TOKENS).logits, atol=1e-2)
    for layer in cache.layers:  # everything in the cache is a grid point
        for held in (layer.keys, layer.values):
            assert torch.allclose(ActivationGrid.parse("int3:affine:token").quantize_dynamically(held), held, atol=1e-5)


@torch.no_grad()
def test_a_plan_keeps_them_as_the_same_grid_for_all_does(tmp_path):
    model = tiny()
    sites = cache_sites(model)
    assert sites[:2] == ("model.layers.0.self_attn.cache:keys", "model.layers.0.self_attn.cache:values")
    assert cache_sites(tiny("bert")) == ()
    plan = uniform_plan(model, "int8").with_activations({"re:.*cache:.*": "int3:affine:token"}, model)
    assert plan.activations == tuple((name, "int3:affine:token") for name in sites)
    weights_only = quantize(model, uniform_plan(model, "int8"))
    quantized = quantize(model, plan)
    with quantized_keys_and_values(weights_only, "int3:affine:token"):
        expected = weights_only(input_ids=TOKENS).logits
    assert torch.equal(quantized(input_ids=TOKENS).logits, expected)
    assert not torch.equal(weights_only(input_ids=TOKENS).logits, expected)
    save(quantized, plan, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out", tiny())(input_ids=TOKENS).logits, expected)
    with quantized_keys_and_values(quantized, "int8:affine:token"):  # the grid that is asked for meanwhile counts
        other = quantized(input_ids=TOKENS).logits
    with quantized_keys_and_values(weights_only, "int8:affine:token"):
        assert torch.equal(weights_only(input_ids=TOKENS).logits, other)


@torch.no_grad()
def test_only_the_named_keys_are_rounded_and_static_scales_are_calibrated():
    model = tiny()
    name = cache_sites(model)[2]
    plan = uniform_plan(model, "fp32").with_activations({name: "int3:affine"}, model)
    quantized = quantize(model, plan, token_batches(2, 2, 9))
    held = {}
    for each, known in ((model, False), (quantized, True)):
        cache = each(input_ids=TOKENS, use_cache=True).past_key_values
        held[known] = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    for place, (before, after) in enumerate(zip(held[False], held[True], strict=True)):
        assert torch.equal(before, after) == (place != 2)
    assert len(held[True][2].unique()) <= 8
    assert len(held[True][3].unique()) > 8


def test_damage_of_each_cache_is_measured():
    model = tiny()
    names = find_activations(model, take_inventory(model), ["re:.*cache:.*"])
    grids = [key_value_grid(bits) for bits in (2, 8)]
    found = measure_activations(model, names, grids, token_batches(2, 2, 9))
    assert found.sites == cache_sites(model)
    assert found.elements == (9 * 8,) * 4  # tokens × head width of one head
    for coarse, fine in map(found.damages.row, names):
        assert coarse > 10 * fine > 0


@torch.no_grad()
def test_attention_reads_rounded_keys_and_values():
    """One layer against attention written out: rounding happens to keys after their rotary positions."""
    model, grid = tiny("llama", layers=1), key_value_grid(2)
    seen = {}
    attention = model.model.layers[0].self_attn

    def keep(_, args, kwargs, output):
        seen["x"], seen["rotary"], seen["out"] = kwargs["hidden_states"], kwargs["position_embeddings"], output[0]

    handle = attention.register_forward_hook(keep, with_kwargs=True)
    with quantized_keys_and_values(model, grid):
        model(input_ids=TOKENS)
    handle.remove()
    split = lambda x: x.unflatten(-1, (-1, 8)).transpose(1, 2)  # noqa: E731
    query, key, value = (split(layer(seen["x"])) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    query, key = apply_rotary_pos_emb(query, key, *seen["rotary"])
    key, value = (grid.quantize_dynamically(each).double().expand(-1, 2, -1, -1) for each in (key, value))
    scores = query.double() @ key.mT / 8**0.5
    mask = torch.ones(scores.shape[-2:]).triu(1).bool()
    mixed = scores.masked_fill(mask, -torch.inf).softmax(-1) @ value
    truth = attention.o_proj(mixed.transpose(1, 2).flatten(2).float())
    assert torch.allclose(seen["out"], truth, atol=1e-4)


def test_bits_per_token_are_counted_with_their_scales():
    # 2 tensors × 2 layers × 1 head × (8 numbers of 4 bits, a float32 scale, a zero point of 4 bits)
    assert key_value_bits(tiny("llama"), "int4:affine:token") == 2 * 2 * 1 * (8 * 4 + 32 + 4)
    assert key_value_bits(tiny("gpt2"), "int8:token") == 2 * 2 * 2 * (8 * 8 + 32)
    model = tiny("llama")
    wanted = {cache_sites(model)[0]: "int4:affine:token", cache_sites(model)[3]: "int8:affine"}
    mixed = uniform_plan(model, "int8").with_activations(wanted, model)
    assert key_value_bits(model, mixed) == (8 * 4 + 32 + 4) + 8 * 16 + 8 * 16 + 8 * 8  # in float: 16 bits a number


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(ModelError, match="shares a scale between tokens"), quantized_keys_and_values(tiny(), "int8"):
        pass
    for other in (nn.Linear(2, 2), tiny("bert")):
        with (
            pytest.raises(ModelError, match="keeps no keys and values"),
            quantized_keys_and_values(other, "int8:token"),
        ):
            pass
    model = tiny()
    with pytest.raises(PlanError, match="token by token"):
        uniform_plan(model, "int8").with_activations({cache_sites(model)[0]: "int8:dynamic"}, model)


@pytest.mark.skipif(
    not {"GEOQUANT_WEIGHTS_DIR", "GEOQUANT_DATA_DIR"} <= set(os.environ), reason="needs a trained checkpoint and text"
)
def test_a_trained_model_hardly_feels_eight_bits_and_feels_two():
    from geoquant.data import evaluation_batches, load_text

    folder = Path(os.environ["GEOQUANT_WEIGHTS_DIR"]) / "stories260K"
    model, text = load_pretrained(folder), load_text("tinystories/v1_valid_head.txt", "test")
    batches = evaluation_batches(text, load_tokenizer(folder), 256, limit=4, batch_size=4)
    found = {0: evaluate(model, batches).cross_entropy.value}
    for bits in (8, 4, 2):
        with quantized_keys_and_values(model, key_value_grid(bits)):
            found[bits] = evaluate(model, batches).cross_entropy.value
    assert abs(found[8] - found[0]) < 0.005
    assert found[0] - 0.01 < found[4] < found[2]
    assert found[2] > found[0] + 0.05
