"""What is left of a language model's predictions when keys and values are kept in few bits?

A model that generates keeps the keys and values of all earlier tokens: 2 · layers · heads · width numbers a token,
which at long contexts outgrow the weights. Here each vector of one head and token is rounded to a grid of its own (a
scale, and a zero point for affine grids) when it enters the cache, keys after their rotary positions, as engines
store them. Since a token's vector depends on no later one, reading a whole window at once gives exactly what
generating it token by token would. The rounding is simulated in float.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import nn

from geoquant.errors import ModelError
from geoquant.grids import ActivationGrid

_SCALE_BITS = 32


def key_value_grid(bits: int) -> ActivationGrid:
    """Return the grid that `bits` stands for: affine, one scale a token and head.

    >>> str(key_value_grid(4))
    'int4:affine:token'
    """
    return ActivationGrid.parse(f"int{bits}:affine:token")


def quantized_cache(model: nn.Module, grid: ActivationGrid | str) -> Any:
    """Return a new cache for ``model(past_key_values=...)`` or ``model.generate(past_key_values=...)``.

    Args:
        model: a causal language model of transformers.
        grid: with a scale per token, such as ``int4:affine:token``.

    Raises:
        ModelError: the model has no configuration of a language model, or the grid shares scales between tokens.
    """
    chosen = ActivationGrid.parse(str(grid))
    if not chosen.per_token:
        raise ModelError(
            f"the cache grid {chosen} shares a scale between tokens, which come one by one; use '...:token'"
        )
    config = getattr(model, "config", None)
    if not hasattr(config, "num_hidden_layers"):
        raise ModelError(f"{type(model).__name__} keeps no keys and values; expected a transformers language model")
    return _cache_class()(chosen, config)


@contextmanager
def quantized_keys_and_values(model: nn.Module, grid: ActivationGrid | str) -> Iterator[None]:
    """Let every forward of `model` keep its keys and values on `grid` for a while.

    Args:
        model: a causal language model of transformers; called as ever, without a cache of one's own.
        grid: see `quantized_cache`.
    """
    quantized_cache(model, grid)

    def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("past_key_values") is not None:
            return None
        return args, {**kwargs, "past_key_values": quantized_cache(model, grid), "use_cache": True}

    handle = model.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def key_value_bits(model: nn.Module, grid: ActivationGrid | str) -> float:
    """Return the bits that one token's keys and values take in all layers, scales and zero points included.

    Args:
        model: a causal language model of transformers.
        grid: see `quantized_cache`.
    """
    config: Any = getattr(model, "config", None)
    chosen = ActivationGrid.parse(str(grid))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = width * chosen.bits + _SCALE_BITS + (chosen.bits if chosen.format.has_zero_point else 0)
    return float(2 * config.num_hidden_layers * heads * each)


@cache
def _cache_class() -> Any:
    """Make the class when transformers is there."""
    from transformers import DynamicCache

    class QuantizedCache(DynamicCache):  # type: ignore[misc]
        """A cache that holds only grid points."""

        def __init__(self, grid: ActivationGrid, config: Any) -> None:
            super().__init__(config=config)
            self._grid = grid

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            rounded = (self._grid.quantize_dynamically(each) for each in (key_states, value_states))
            return super().update(*rounded, *args, **kwargs)

    return QuantizedCache
