"""A replay gives the very bits of a full forward, whatever the model does, and costs what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from geoquant.errors import ModelError
from geoquant.models import (
    Replay,
    Site,
    find_sites,
    fold_batch_norm_,
    get_weight,
    inference,
    predict,
    set_weight_,
    temporarily,
)
from geoquant.models.observation import observe
from geoquant.models.zoo import digits_cnn, resnet18_imagenet, resnet20_cifar10, transformer6


def check_exact(model: nn.Module, batch: Any, forward: Any = None, partial: bool = True) -> Replay:
    """Compare replay and full forward bit by bit with each site changed in turn, in two orders."""
    with inference(model):
        expected = predict(model, batch, forward)
    replay = Replay(model, batch, forward)
    assert torch.equal(replay.reference, expected)
    assert replay.exact_prefix is partial
    sites = find_sites(model)
    for site in (*sites, *reversed(sites)):
        changed = -0.7 * get_weight(model, site).clone()
        with temporarily(model, site, changed):
            with inference(model):
                expected = predict(model, batch, forward)
            result = replay.run(site)
        assert torch.equal(result, expected), site.name
        assert torch.equal(replay.run(site), replay.reference), site.name
    return replay


class InPlace(nn.Module):
    """Writes into outputs of earlier calls, into its own input, and into views."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.a(x)
        y = self.b(self.relu(shortcut))
        y += shortcut  # an output of `b`, after it ended
        alias = self.same(y)
        alias[:, :2].mul_(2)  # seen through y as well
        self.relu(y)  # the result is thrown away: only the effect counts
        z = self.c(y)
        z.add_(y)
        return self.d(z)


class Remembers(nn.Module):
    """Passes a tensor on through an attribute, behind the back of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.middle = Stash(self.first)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.middle(x))
        return self.head(y * self.middle.kept + self.middle.hidden)


class Stash(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.inner(x).tanh()
        self.kept = self.hidden * 3
        return self.kept


class Leaks(nn.Module):
    """Appends inner tensors to a list that the caller reads: no output, no attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)
        self.features: list[Tensor] = []
        self.block[1].register_forward_hook(lambda module, inputs, output: self.features.append(output))

    def forward(self, x: Tensor) -> Tensor:
        self.features.clear()
        y = self.block(x)
        return self.head(y + self.features[0])


class Shared(nn.Module):
    """Calls one layer several times, and reads another's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.out, self.between = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(self.step(x).tanh()).tanh()
        x = F.linear(x, self.out.weight)
        x = self.between(x).tanh()
        return self.out(self.step(x))


class Nested(nn.Module):
    """Passes tuples, dicts and keyword arguments between its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.join, self.head = Split(), Join(), nn.Linear(6, 2)

    def forward(self, *, left: Tensor, right: Tensor | None = None) -> dict[str, Any]:
        parts, nothing, scores = self.split(left, other=right)
        assert nothing is None
        scores["a"] += 1
        return {"logits": self.head(self.join(parts, **scores)), "loss": None}


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 12)

    def forward(self, x: Tensor, other: Tensor | None) -> tuple[list[Tensor], None, dict[str, Tensor]]:
        a, b = self.up(x).chunk(2, -1)
        return [a, b.tanh()], None, {"a": a + 1, "b": b if other is None else b * other}


class Join(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, parts: list[Tensor], a: Tensor, b: Tensor) -> Tensor:
        return self.mix(parts[0] * parts[1]) + a * b


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("build", [InPlace, Remembers, Leaks, Shared])
def test_awkward_models_are_exact(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    replay = check_exact(build(), X)
    assert replay.fraction(find_sites(replay._model)[-1]) < 1


def test_keywords_and_nested_outputs_are_exact() -> None:
    torch.manual_seed(0)
    for batch in ({"left": X}, {"left": X, "right": X.tanh()}, ({"left": X}, torch.zeros(5))):
        check_exact(Nested(), batch)


def test_without_escape_analysis_the_leak_would_be_replayed() -> None:
    """The negative twin: a module whose hidden effects are ignored does give wrong logits."""
    torch.manual_seed(0)
    model = Remembers()
    replay = Replay(model, X)
    for call in replay._seen.calls:
        if call.module is model.middle:
            assert not call.replayable
            call.replayable = True
    index = next(i for i, call in enumerate(replay._seen.calls) if call.module is model.middle)
    replay._outputs[index] = model.middle(X).detach()
    first, _, head = find_sites(model)
    with temporarily(model, first, torch.zeros(6, 6)):
        replay.run(first)  # leaves a wrong tensor in the attribute
    assert not torch.equal(replay.run(head), replay.reference)


@pytest.mark.parametrize("folded", [False, True])
def test_convolutional_zoo_is_exact(folded: bool) -> None:
    torch.manual_seed(0)
    cases = [(digits_cnn(), (4, 1, 8, 8)), (resnet20_cifar10(), (2, 3, 32, 32))]
    for model, shape in cases:
        if folded:
            fold_batch_norm_(model)
        batch = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        check_exact(model.to(memory_format=torch.channels_last), batch)


def test_in_place_residual_network_is_exact() -> None:
    torch.manual_seed(0)
    replay = check_exact(resnet18_imagenet(5), torch.randn(1, 3, 32, 32))
    last, *_, first = reversed(find_sites(replay._model))
    assert replay.fraction(first) == 1
    assert replay.fraction(last) < 0.01


def test_transformer_with_padding_is_exact() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": torch.randint(256, (2, 4)), "attention_mask": mask}
    replay = check_exact(transformer6(width=16, hidden=32), batch)
    fractions = {site.name: replay.fraction(site) for site in find_sites(replay._model)}
    assert fractions["layers.0.attention.q"] > fractions["layers.3.attention.q"] > fractions["layers.5.attention.q"]


@pytest.mark.parametrize("fused", [True, False])
def test_torch_attention_is_exact(fused: bool) -> None:
    """The fused inference kernels read all weights of a layer at once, without calling its parts."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=fused)
    model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    replay = check_exact(model, torch.randn(3, 4, 6))
    fractions = [replay.fraction(site) for site in find_sites(model)]
    assert fractions == sorted(fractions, reverse=True)
    assert fractions[0] == 1
    assert fractions[-1] < 0.1


def test_multihead_attention_output_projection_is_never_called_but_found() -> None:
    torch.manual_seed(0)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, kdim=6, batch_first=True)
            self.after = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.before(x)
            return self.after(self.attention(y, x, y)[0])

    check_exact(Attends(), X.view(1, 5, 6))


def llama(tied: bool) -> nn.Module:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def bert(_: bool) -> nn.Module:
    config = BertConfig(vocab_size=32, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    return BertForSequenceClassification(config)


def gpt2(_: bool) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=2, n_head=2))


@pytest.mark.parametrize(("build", "tied"), [(llama, False), (llama, True), (bert, True), (gpt2, True)])
def test_huggingface_models_are_exact(build: Callable[[bool], nn.Module], tied: bool) -> None:
    torch.manual_seed(0)
    model = build(tied)
    ids = torch.randint(32, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    replay = check_exact(model, BatchEncoding({"input_ids": ids, "attention_mask": mask}))
    sites = find_sites(model)
    fractions = [replay.fraction(site) for site in sites]
    assert sum(fractions) / len(sites) < 0.72
    assert fractions[-1] < 0.35  # embeddings cost a whole forward, the last layer a small part
    with torch.inference_mode():  # other operations are visible there; the answer is the same
        again = Replay(model, replay._batch)
    assert [again.fraction(site) for site in sites] == fractions
    if tied and build is llama:  # the embedding is read first of all, so its tied head costs everything
        assert replay.fraction(sites[0]) == 1


def test_custom_forward_is_replayed() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(6, 6), "unused": nn.Linear(2, 2), "head": nn.Linear(6, 3)})
    replay = check_exact(model, X, lambda m, x: m["head"](m["body"](x).tanh()))
    _, unused, head = find_sites(model)
    assert replay.fraction(head) == pytest.approx(1 / 3)
    assert replay.fraction(unused) == 1  # never seen in use: only a full forward is safe


def test_several_sites_start_at_the_earliest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    sites = find_sites(model)
    replay = Replay(model, X)
    for site in (sites[1], sites[3]):
        set_weight_(model, site, torch.eye(6))
    with inference(model):
        assert torch.equal(replay.run(sites[3], sites[1]), predict(model, X))
    assert replay.fraction(sites[3], sites[1]) == replay.fraction(sites[1]) == pytest.approx(0.75)


def test_random_models_fall_back_to_full_forwards() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.dropout(self.a(x), training=True))

    model = Noisy()
    replay = Replay(model, X)
    assert not replay.exact_prefix
    assert [replay.fraction(site) for site in find_sites(model)] == [1, 1]
    assert replay.run(find_sites(model)[1]).shape == (5, 2)


def test_a_model_that_changes_its_way_is_run_in_full() -> None:
    """Before the changed site the calls must be those observed; else nothing of the recording is used."""

    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.other_way = False

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(x) if self.other_way else self.a(x))

    model = Fickle()
    replay = Replay(model, X)
    model.other_way = True
    with inference(model):
        assert torch.equal(replay.run(find_sites(model)[2]), predict(model, X))


def test_routing_after_the_changed_site_may_change() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.a, self.b = (nn.Linear(6, n) for n in (6, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.a(y) if self.gate(y).sum() > 0 else self.b(y)

    torch.manual_seed(0)
    check_exact(Routed(), X)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = resnet20_cifar10()
    model.train()
    model.layer1.eval()
    own = model.linear.forward
    model.linear.forward = lambda x: own(x) * 2  # such as accelerate does
    before = copy.deepcopy({name: dict(vars(module)) for name, module in model.named_modules() if name != "linear"})
    kept = model.linear.forward
    state = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    with Replay(model, torch.randn(2, 3, 32, 32)) as replay:
        replay.run(find_sites(model)[5])
    assert model.linear.forward is kept
    assert all(set(vars(module)) == set(before[name]) for name, module in model.named_modules() if name in before)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_nothing_stays_behind_when_the_model_raises() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("stop")

    model = Fails()
    with pytest.raises(RuntimeError, match="stop"):
        Replay(model, X)
    assert "forward" not in vars(model)
    assert "forward" not in vars(model.a)


def test_closed_and_foreign_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 2))
    (site,) = find_sites(model)
    replay = Replay(model, X)
    with pytest.raises(ModelError, match="another model's"):
        replay.run(Site("other", "other.weight", "linear", (1, 1)))
    replay.close()
    with pytest.raises(ModelError, match="closed"):
        replay.run(site)


def test_user_hooks_still_run_and_count_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    check_exact(model, X)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_flops_by_hand(mode: Callable[[], Any]) -> None:
    """Two FLOPs per multiply-add: 2·N·in·out for linear, 2·N·out·H·W·in·k² for convolution."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 25, 7))
    with mode():
        seen = observe(model, torch.zeros(2, 3, 5, 5))
    convolution, linear = 2 * 2 * 4 * 25 * 3 * 9, 2 * 2 * 100 * 7
    assert [call.flops for call in seen.calls] == [convolution + linear, convolution, 0, linear]
    assert seen.flops == convolution + linear


def test_fused_attention_counts_like_its_parts() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    batch = torch.randn(2, 5, 8)
    fused = observe(layer, batch).flops
    by_hand = 2 * 2 * 5 * 8 * (4 * 8 + 2 * 16) + 4 * 2 * 5 * 5 * 8
    assert fused == by_hand
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert observe(layer, batch).flops == by_hand
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
