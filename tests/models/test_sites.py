"""Every quantizable weight is found once, under a stable name, and can be changed and put back bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from geoquant.errors import LayerNameError, ModelError
from geoquant.models import Site, find_sites, get_weight, register_layer_type, set_weight_, temporarily
from geoquant.models.zoo import ZOO, resnet20_cifar10
from llamas import tiny_llama


def named(model: nn.Module) -> dict[str, Site]:
    return {site.name: site for site in find_sites(model)}


def test_resnet_has_twenty_sites_in_module_order() -> None:
    sites = find_sites(resnet20_cifar10())
    assert len(sites) == 20
    assert [sites[0].name, sites[1].name, sites[-1].name] == ["conv1", "layer1.0.conv1", "linear"]
    assert sum(site.weights for site in sites) == 269722 - 1376 - 10  # all but batch norm and the head's bias
    assert sites[1].matrix_shape == (16, 144)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_count_once(tied: bool) -> None:
    model = tiny_llama(tied=tied)
    sites = named(model)
    embedding = sites["model.embed_tokens"]
    assert embedding.kind == "embedding"
    assert embedding.aliases == (("lm_head.weight",) if tied else ())
    assert ("lm_head" in sites) is not tied
    assert sum(site.weights for site in sites.values()) == sum(p.numel() for p in model.parameters() if p.dim() == 2)


def test_parameters_over_one_storage_are_tied_too() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = nn.Parameter(model["a"].weight.data)
    (site,) = find_sites(model)
    assert site.aliases == ("b.weight",)


def test_a_shared_module_is_one_site() -> None:
    layer = nn.Linear(3, 3)
    (site,) = find_sites(nn.Sequential(layer, nn.ReLU(), layer))
    assert (site.name, site.aliases) == ("0", ("2.weight",))


def test_a_transposed_tie_is_refused() -> None:
    """Quantizing one of the two would change the other behind its back."""
    model = nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(5, 3)})
    model["b"].weight = nn.Parameter(model["a"].weight.data.t())
    with pytest.raises(ModelError, match=r"'a\.weight' and 'b\.weight' share memory"):
        find_sites(model)


def test_multihead_attention_joint_and_separate() -> None:
    joint = named(nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)}))
    assert {name: site.kind for name, site in joint.items()} == {
        "attention.in_proj": "attention",
        "attention.out_proj": "linear",
    }
    assert joint["attention.in_proj"].matrix_shape == (24, 8)
    separate = named(nn.MultiheadAttention(8, 2, kdim=6, vdim=5))
    assert [site.matrix_shape for site in separate.values()] == [(8, 8), (8, 6), (8, 5), (8, 8)]
    assert list(separate) == ["q_proj", "k_proj", "v_proj", "out_proj"]


def test_huggingface_conv1d_counts_columns() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    site = named(model)["transformer.h.0.attn.c_attn"]
    assert (site.shape, site.matrix_shape) == ((8, 24), (24, 8))
    weight = get_weight(model, site)
    assert torch.equal(site.matrix(weight), weight.t())
    assert torch.equal(site.restore(site.matrix(weight)), weight)


def test_bert_sites_match_its_matrices() -> None:
    config = BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    model = BertForSequenceClassification(config)
    names = {site.parameter for site in find_sites(model)}
    assert names == {name for name, p in model.named_parameters() if p.dim() == 2}


@pytest.mark.parametrize("name", ZOO.names())
def test_matrix_and_back_over_the_zoo(name: str) -> None:
    model = ZOO[name]()
    for site in find_sites(model):
        weight = get_weight(model, site)
        matrix = site.matrix(weight)
        assert tuple(matrix.shape) == site.matrix_shape
        assert torch.equal(site.restore(matrix), weight)


def test_every_layer_kind_is_found() -> None:
    layers = [
        nn.Conv1d(2, 4, 3),
        nn.Conv3d(2, 4, 3),
        nn.ConvTranspose1d(2, 4, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.ConvTranspose3d(2, 4, 3),
        nn.Embedding(5, 3),
        nn.EmbeddingBag(5, 3),
    ]
    sites = find_sites(nn.ModuleList(layers))
    assert [site.kind for site in sites] == ["conv"] * 2 + ["conv_transpose"] * 3 + ["embedding"] * 2
    assert [site.matrix_shape[0] for site in sites] == [4, 4, 4, 6, 4, 5, 5]


def test_integer_weights_are_passed_over() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    assert [site.name for site in find_sites(model)] == ["0"]


def test_models_without_sites_say_what_they_hold() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 2))

    with pytest.raises(ModelError, match=r"BatchNorm2d, Odd, Sequential.*register_layer_type"):
        find_sites(nn.Sequential(Odd(), nn.BatchNorm2d(3)))


def test_registered_types_are_found_and_subclasses_keep_their_own() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 4, 5))
            self.down = nn.Parameter(torch.randn(3, 5, 4))
            self.gate = None

    class Scaled(Experts):
        pass

    class Plain(nn.Linear):
        pass

    register_layer_type(Experts, "experts", ("up", "down", "gate"), view="stacked")
    sites = find_sites(nn.ModuleDict({"moe": Scaled(), "plain": Plain(2, 2)}))
    assert [(site.name, site.kind, site.matrix_shape) for site in sites] == [
        ("moe.up", "experts", (12, 5)),
        ("moe.down", "experts", (15, 4)),
        ("plain", "linear", (2, 2)),
    ]


def test_names_never_collide() -> None:
    class Both(nn.MultiheadAttention):
        def __init__(self) -> None:
            super().__init__(4, 1)
            self.in_proj = nn.Linear(4, 4)

    names = [site.name for site in find_sites(Both())]
    assert len(set(names)) == len(names) == 3


def test_computed_and_lazy_weights_say_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"'0\.weight' is computed.*remove_parametrizations"):
        find_sites(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))))
    with pytest.raises(ModelError, match="lazy"):
        find_sites(nn.Sequential(nn.LazyLinear(2)))


def test_only_and_exclude() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert [site.name for site in find_sites(model, only=["0", "1"], exclude=["1"])] == ["0"]
    with pytest.raises(ModelError, match="nothing to quantize"):
        find_sites(model, only=["0"], exclude=["re:.*"])
    with pytest.raises(LayerNameError, match="'7'"):
        find_sites(model, exclude=["7"])


def test_sites_of_a_meta_model_cost_no_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**5, 10**5), nn.Linear(10**5, 10))
    assert [site.weights for site in find_sites(model)] == [10**10, 10**6]


def test_setting_a_weight_moves_its_aliases_and_keeps_the_parameter() -> None:
    model = tiny_llama(tied=True)
    site = named(model)["model.embed_tokens"]
    parameter = model.lm_head.weight
    set_weight_(model, site, torch.full(site.shape, 0.5))
    assert parameter is model.lm_head.weight is model.model.embed_tokens.weight
    assert bool((parameter == 0.5).all())


def test_setting_refuses_what_does_not_fit_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    (site,) = find_sites(model)
    before = get_weight(model, site).clone()
    with pytest.raises(ModelError, match=r"\(3, 2\).*\(2, 3\)"):
        set_weight_(model, site, torch.zeros(2, 3))
    with pytest.raises(ModelError, match="another model's"):
        set_weight_(nn.Linear(2, 3), site, torch.zeros(3, 2))
    assert torch.equal(get_weight(model, site), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temporarily_restores_every_bit(dtype: torch.dtype) -> None:
    """NaN payloads and negative zeros included; also when the block raises."""
    layer = nn.Linear(4, 4).to(dtype)
    with torch.no_grad():
        layer.weight[0] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-40])
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    before = layer.weight.detach().clone().view(bits)

    def interrupted() -> None:
        assert bool((layer.weight == 1).all())
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), temporarily(layer, find_sites(layer)[0], torch.ones(4, 4)):
        interrupted()
    assert torch.equal(layer.weight.detach().view(bits), before)


def test_temporarily_works_with_and_within_inference_mode() -> None:
    with torch.inference_mode():
        born_inside = nn.Linear(2, 2)
    for layer in (born_inside, nn.Linear(2, 2)):
        before = copy.deepcopy(layer.weight.detach().tolist())
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
            with mode(), temporarily(layer, find_sites(layer)[0], torch.zeros(2, 2)):
                assert layer.weight.tolist() == [[0, 0], [0, 0]]
            assert layer.weight.tolist() == before
