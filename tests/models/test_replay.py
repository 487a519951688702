"""A replay gives the very bits of a full forward, whatever the model does, and costs what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.models import (
    Replay,
    find_sites,
    inference,
    predict,
    set_weight_,
    temporarily,
)
from models.replays import X, check_exact


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


@pytest.mark.parametrize("build", [InPlace, Remembers, Leaks, Shared])
def test_replays_from_the_call_of_a_module_are_exact(build: Callable[[], nn.Module]) -> None:
    """What hooks do to a module's input is seen by all that comes later, whichever module it is."""
    torch.manual_seed(0)
    model = build()
    modules = list(model.modules())
    with Replay(model, X, starts=modules) as replay:
        for module in modules:
            handle = module.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))
            with inference(model):
                expected = predict(model, X)
            assert torch.equal(replay.run_from(module), expected)
            handle.remove()
            assert torch.equal(replay.run_from(module), replay.reference)
        assert replay.fraction_from(model) == 1
        assert replay.fraction_from(modules[-1]) <= 1
