"""What is left of a language model's predictions when keys and values are kept in few bits, and what do they take?

Keys and values of all earlier tokens, 2 · layers · heads · width numbers a token, outgrow the weights at long contexts.
A plan puts them on grids of their own like any other activation (`geoquant.models.cache_sites`); here every one of a
model goes onto the same grid for a while. Each vector of one head and token has a scale of its own, and a zero point
for affine grids, where the grid says so. The rounding is simulated in float.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from geoquant.errors import ModelError
from geoquant.grids import NOT_SEEN, ActivationGrid, ActivationQuantizer
from geoquant.models import cache_sites
from geoquant.models.entering import rounded_entering
from geoquant.plan import Plan

_SCALE_BITS = 32
_FLOAT_BITS = 16


def key_value_grid(bits: int) -> ActivationGrid:
    """Return the grid that `bits` stands for: affine, one scale a token and head.

    >>> str(key_value_grid(4))
    'int4:affine:token'
    """
    return ActivationGrid.parse(f"int{bits}:affine:token")


@contextmanager
def quantized_keys_and_values(model: nn.Module, grid: ActivationGrid | str) -> Iterator[None]:
    """Let `model` keep its keys and values on `grid` for a while, in every forward and in ``generate``.

    Args:
        model: a causal language model of transformers.
        grid: with a scale per token, such as ``int4:affine:token``.

    Raises:
        ModelError: the model keeps no keys and values, or the grid shares scales between tokens.
    """
    chosen = ActivationGrid.parse(str(grid))
    if not chosen.per_token:
        raise ModelError(
            f"the cache grid {chosen} shares a scale between tokens, which come one by one; use '...:token'"
        )
    quantizer = ActivationQuantizer(chosen, NOT_SEEN)
    with rounded_entering(model, (), dict.fromkeys(_sites(model), quantizer)):
        yield


def key_value_bits(model: nn.Module, kept: Plan | ActivationGrid | str) -> float:
    """Return the bits that one token's keys and values take in all layers, with its scales and zero points.

    Args:
        model: a causal language model of transformers.
        kept: one grid for all, or a plan; what that leaves in float counts 16 bits a number.

    Raises:
        ModelError: the model keeps no keys and values.
    """
    sites, config = _sites(model), _text_config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if isinstance(kept, Plan):
        grids = [kept.activation_grids.get(name) for name in sites]
    else:
        grids = [ActivationGrid.parse(str(kept))] * len(sites)
    return float(sum(heads * _vector_bits(grid, width) for grid in grids))


def _vector_bits(grid: ActivationGrid | None, width: int) -> float:
    if grid is None:
        return _FLOAT_BITS * width
    scale = _SCALE_BITS + (grid.bits if grid.format.has_zero_point else 0)
    return width * grid.bits + (scale if grid.per_token else 0)


def _sites(model: nn.Module) -> tuple[str, ...]:
    sites = cache_sites(model)
    if not sites:
        raise ModelError(f"{type(model).__name__} keeps no keys and values; expected a transformers language model")
    return sites


def _text_config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
