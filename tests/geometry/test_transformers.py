"""Tiny Llama, GPT-2 and BERT from transformers, against dense float64 Hessians of chosen layers."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from geoquant.geometry import gauss_newton_traces, hessian_traces, kronecker_factors, measure_geometry, quadratic_form
from geoquant.models import find_sites

SMALL = {"vocab_size": 7, "max_position_embeddings": 8}
BOTH = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, **SMALL}


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(**BOTH, num_key_value_heads=1, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=7, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def _bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**BOTH, num_labels=3))


CASES = {
    "llama": (_llama, "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"),
    "gpt2": (_gpt2, "transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_proj.weight"),
    "bert": (_bert, "bert.encoder.layer.0.attention.self.query.weight", "classifier.weight"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    make, *names = CASES[request.param]
    torch.manual_seed(11)
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # away from the nearly linear start
    tokens = torch.randint(0, 7, (3, 4))
    labels = torch.randint(0, 3, (3,)) if request.param == "bert" else torch.randint(0, 7, (3, 4))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    return model, names, batch


def _dense(model: nn.Module, name: str, batch: dict) -> torch.Tensor:
    """The Hessian of the model's own loss (causal models predict the next token) in one weight, entry by entry."""
    weight = model.get_parameter(name)

    def loss(flat):
        return torch.func.functional_call(model, {name: flat.view_as(weight)}, (), batch).loss

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, weight.detach().flatten())


def test_quadratic_forms_agree_with_the_dense_hessian(case):
    model, names, batch = case
    for name in names:
        delta = torch.randn_like(model.get_parameter(name))
        form = quadratic_form(model, [batch], {name: delta}, loss="cross_entropy").joint.value
        flat = delta.detach().flatten()
        assert form == pytest.approx(
            float(flat @ _dense(model, name, batch) @ flat), rel=1e-6
        )  # Llama norms in float32


def test_traces_of_every_site_come_with_evidence(case):
    model, names, batch = case
    sites = find_sites(model)
    found = hessian_traces(model, [batch], sites, probes=48)
    assert set(found) == {site.name for site in sites}
    for name in names:
        site = next(site for site in sites if site.parameter == name)
        truth = float(_dense(model, name, batch).trace())
        trace = found[site.name]
        assert abs(trace.value - truth) <= 4.5 * trace.stderr + 1e-9 * abs(truth), name


def test_layers_that_see_tokens_are_exact_per_sample_and_frozen_weights_count(case):
    model, names, batch = case
    model.requires_grad_(False)
    traces = gauss_newton_traces(model, [batch], names)
    factors = kronecker_factors(model, [batch], names)
    for name in names:
        assert traces[name].exact, name
        assert traces[name].value > 0
        assert factors[name].quadratic(torch.randn_like(model.get_parameter(name))).value > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(True)


def test_all_measures_of_a_language_model_together(case):
    model, _, batch = case
    sites = find_sites(model)
    found = measure_geometry(model, [batch], sites)
    assert found.loss == "cross_entropy"
    assert found.spectrum is not None
    for site in found.sites:
        assert site.gauss_newton_trace is not None
        assert site.hessian_trace is not None
        assert site.spectral_norm is not None
    whole = sum(site.hessian_trace.value for site in found.sites)
    trace = found.spectrum.density().moment(1)
    spread = sum(site.hessian_trace.stderr for site in found.sites) + trace.stderr
    assert abs(trace.value - whole) <= 8 * spread
    assert ("curvature in the input", "") in {(each.measure, each.site) for each in found.missing}
