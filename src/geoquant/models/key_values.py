"""Where do a language model's keys and values enter its cache, and how are they replaced on their way?

A model that generates keeps the keys and values of all earlier tokens. Each attention module of a causal language model
of transformers has two activation sites for them, ``model.layers.0.self_attn.cache:keys`` and ``…:values`` for
example: what it keeps, keys after their rotary positions, as engines store them. Since a token's vector depends on no
later one, reading a whole window at once gives what generating it token by token would. Models of other libraries, and
caches that hold no keys and values (state-space models), are not seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geoquant.models.calling import is_causal

KEPT = ("keys", "values")
_CACHE = "past_key_values"


def cache_sites(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the sites in the order of layers; empty where there are none.

    >>> cache_sites(nn.Linear(2, 2))
    ()
    """
    return tuple(f"{path}.cache:{kept}" for path in _attentions(model) for kept in KEPT)


def is_cache_site(name: str) -> bool:
    """Say whether an activation site is one of these.

    >>> is_cache_site("model.layers.0.self_attn.cache:keys"), is_cache_site("layer1.0.add:0")
    (True, False)
    """
    return name.endswith(tuple(f".cache:{kept}" for kept in KEPT))


def round_cached_(model: nn.Module, rounders: Mapping[str, Callable[..., Any]]) -> list[RemovableHandle]:
    """Let attention keep its keys and values as the named rounders return them (site → tensor to tensor).

    Of two hooks that name the same site, the later one counts.
    """
    found: dict[str, dict[str, Callable[..., Any]]] = {}
    for name, rounder in rounders.items():
        path, _, kept = name.rpartition(".cache:")
        found.setdefault(path, {})[kept] = rounder
    modules = dict(model.named_modules())
    return [modules[path].register_forward_pre_hook(CacheHook(own), with_kwargs=True) for path, own in found.items()]


class CacheHook:
    """Gives an attention module a cache that rounds."""

    def __init__(self, rounders: Mapping[str, Callable[..., Any]]) -> None:
        self.rounders = rounders

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Put one around the cache that comes, or in the place of none."""
        cache, rounders = kwargs.get(_CACHE), self.rounders
        if isinstance(cache, _RoundingCache):
            cache, rounders = cache.inner, {**cache.rounders, **rounders}
        return args, {**kwargs, _CACHE: _RoundingCache(cache, rounders)}


class _RoundingCache:
    """A cache that rounds what comes and hands it on to the real one, if there is one."""

    def __init__(self, inner: Any, rounders: Mapping[str, Callable[..., Any]]) -> None:
        self.inner, self.rounders = inner, rounders

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        entered = dict(zip(KEPT, (keys, values), strict=True))
        rounded = [self.rounders[kept](each) if kept in self.rounders else each for kept, each in entered.items()]
        return tuple(rounded) if self.inner is None else self.inner.update(*rounded, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _attentions(model: nn.Module) -> list[str]:
    """Return the paths of the modules that keep something: the innermost that know their layer and take a cache."""
    if not is_causal(model):
        return []
    found = [path for path, module in model.named_modules() if hasattr(module, "layer_idx") and _takes_cache(module)]
    return [path for path in found if not any(other.startswith(f"{path}.") for other in found)]


def _takes_cache(module: nn.Module) -> bool:
    return _CACHE in inspect.signature(module.forward).parameters
