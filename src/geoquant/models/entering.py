"""How can what enters a layer, or an operation, be replaced on its way in?

Activation sites are the inputs of layers, under the layers' names, the operands of additions, softmaxes and matrix
products, and the keys and values that are kept (`geoquant.models.find_operations`). A rounder is a callable from
tensors to tensors; hooks of the model call it. Not covered: what torch computes inside one operation, and what reads
indices (`refusal` says which).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geoquant.errors import ModelError
from geoquant.models.intercept import Rounders, rounders_of_operation, unwatched, watch_operations_
from geoquant.models.inventory import Inventory
from geoquant.models.key_values import CacheHook, is_cache_site, round_cached_
from geoquant.models.operations import find_operations
from geoquant.models.sites import Site


class _InputHook:
    """Rounds the first input of a layer."""

    def __init__(self, rounder: Callable[..., Any]) -> None:
        self.rounder = rounder

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return ((self._rounded(args[0]), *args[1:]), kwargs) if isinstance(args[0], Tensor) else None
        first = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
        return None if first is None else (args, {**kwargs, first: self._rounded(kwargs[first])})

    def _rounded(self, value: Tensor) -> Any:
        with unwatched():
            return self.rounder(value)


class _AttentionHook:
    """Rounds query, key and value of an attention module; what is one tensor stays one tensor."""

    names = ("query", "key", "value")

    def __init__(self, rounder: Callable[..., Any], places: tuple[int, ...]) -> None:
        self.rounder, self.places = rounder, places

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entered = [*args[:3], *(kwargs[name] for name in self.names[len(args) :])]
        different = {id(entered[place]): entered[place] for place in self.places}
        with unwatched():
            rounded = self.rounder(*different.values())
        parts = dict(zip(different, rounded if len(different) > 1 else [rounded], strict=True))
        entered = [parts.get(id(each), each) if place in self.places else each for place, each in enumerate(entered)]
        named = {name: each for name, each in zip(self.names, entered, strict=True) if name in kwargs}
        return (*entered[: len(args[:3])], *args[3:]), {**kwargs, **named}


_PLACES = {"q_proj_weight": (0,), "k_proj_weight": (1,), "v_proj_weight": (2,)}


def round_entering_(model: nn.Module, sites: Sequence[Site], rounders: Rounders) -> list[RemovableHandle]:
    """Let `model` pass what enters the named layers and operations through their rounders; return the hooks' handles.

    Args:
        model: any module.
        sites: its layers.
        rounders: activation site → callable. It is given the tensor that enters, or the different ones of query, key
            and value, and returns as many.

    Raises:
        ModelError: the model has no such operation.

    >>> import torch
    >>> from geoquant.models.sites import find_sites
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False)).requires_grad_(False)
    >>> _ = model[0].weight.fill_(1.0)
    >>> handles = round_entering_(model, find_sites(model), {"0": torch.round})
    >>> model(torch.tensor([[0.8]])).item()
    1.0
    """
    known = {site.name for site in sites}
    _check_known(model, [name for name in rounders if name not in known])
    return _install(model, sites, rounders)


@contextmanager
def rounded_entering(model: nn.Module, sites: Sequence[Site], rounders: Rounders) -> Iterator[None]:
    """Do as `round_entering_` for a while; operations are not looked for, as that takes a trace of the model."""
    handles = _install(model, sites, rounders)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rounders_in(model: nn.Module) -> list[Callable[..., Any]]:
    """Return the rounders in the hooks of `model`, each once."""
    found: dict[int, Callable[..., Any]] = {}
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            found.update((id(each), each) for each in _held(hook))
    return list(found.values())


def _held(hook: object) -> list[Callable[..., Any]]:
    if isinstance(hook, CacheHook):
        return list(hook.rounders.values())
    return [hook.rounder] if isinstance(hook, _InputHook | _AttentionHook) else rounders_of_operation(hook)


def owners(model: nn.Module, site: Site) -> list[tuple[nn.Module, str]]:
    """Return the modules that multiply the site's weight, with its name there; one unless the weight is tied."""
    pairs = (parameter.rpartition(".") for parameter in (site.parameter, *site.aliases))
    return [(model.get_submodule(path), last) for path, _, last in pairs]


def callers(model: nn.Module, sites: Mapping[str, Site], name: str) -> tuple[nn.Module, ...]:
    """Return the modules inside whose call the activation `name` enters: the layer, or the operation's owner."""
    if name in sites:
        return tuple(owner for owner, _ in owners(model, sites[name]))
    path = name.rpartition(":")[0]
    modules = dict(model.named_modules())
    return (modules[path if isinstance(modules.get(path), nn.Softmax) else path.rpartition(".")[0]],)


def refusal(site: Site, inventory: Inventory) -> str:
    """Return why the input of `site` takes no grid; empty where it does."""
    if site.kind == "embedding":
        return "an embedding reads indices"
    parent, _, last = site.parameter.removesuffix(".weight").rpartition(".")
    attentions = {other.parameter.rpartition(".")[0] for other in inventory.sites if other.kind == "attention"}
    if last == "out_proj" and parent in attentions:
        return "torch's MultiheadAttention multiplies it inside one operation, where nothing can be put in between"
    return ""


def _install(model: nn.Module, sites: Sequence[Site], rounders: Rounders) -> list[RemovableHandle]:
    known = {site.name: site for site in sites}
    handles = []
    for name, rounder in rounders.items():
        for owner, parameter in owners(model, known[name]) if name in known else ():
            handles.append(owner.register_forward_pre_hook(_hook(owner, parameter, rounder), with_kwargs=True))
    others = {name: rounder for name, rounder in rounders.items() if name not in known}
    cached = {name: others.pop(name) for name in list(others) if is_cache_site(name)}
    return [*handles, *round_cached_(model, cached), *(watch_operations_(model, others) if others else ())]


def _hook(owner: nn.Module, parameter: str, rounder: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(owner, nn.MultiheadAttention):
        return _AttentionHook(rounder, _PLACES.get(parameter, (0, 1, 2)))
    return _InputHook(rounder)


def _check_known(model: nn.Module, names: Sequence[str]) -> None:
    missing = sorted(set(names) - set(find_operations(model))) if names else []
    if missing:
        raise ModelError(
            f"the plan puts '{missing[0]}' on a grid, which this model does not compute or cannot be traced for; "
            "drop it from the plan with plan.with_activations(...)"
        )
