"""How often does each weight multiply, for one sample?

Counted in a real forward: every matrix product or convolution is charged to the site whose weight it reads, wherever
in the model it is called. Look-ups of embeddings multiply nothing. Of a fused kernel that reads several sites at once
(attention on its fast path) each site is charged its weights times the rows that come in.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from geoquant.models import Forward, Site, batch_size, evaluating, get_weight, predict
from geoquant.models.observation import storage_identity

_FUSED = (torch.ops.aten._native_multi_head_attention, torch.ops.aten._transformer_encoder_layer_fwd)

Place = tuple[int, int]


def multiplications(
    model: nn.Module, sites: tuple[Site, ...], batch: Any, forward: Forward | None = None
) -> tuple[int, ...]:
    """Return the multiply-accumulates of each site for one sample of `batch`, rounded up where samples differ.

    >>> from geoquant.models import find_sites
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(8, 3))
    >>> multiplications(net, find_sites(net), torch.zeros(5, 1, 4, 4))  # 4 positions × 18 weights; 24 weights
    (72, 24)
    """
    places = {_place(get_weight(model, site)): row for row, site in enumerate(sites)}
    counter = _Counter({place: row for place, row in places.items() if place is not None}, sites)
    with torch.no_grad(), evaluating(model), counter:
        predict(model, batch, forward)
    return tuple(math.ceil(count / batch_size(batch)) for count in counter.counts)


def _place(tensor: Tensor) -> Place | None:
    """Identify a weight by its memory; views of all of it, such as a transpose, start at the same place."""
    identity = storage_identity(tensor)
    return None if identity is None else (identity, int(tensor.storage_offset()))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Charges what every operation multiplies to the site that it reads."""

    def __init__(self, rows: dict[Place, int], sites: tuple[Site, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows, self._sites = rows, sites
        self.counts = [0] * len(sites)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if packet in flop_registry:
            for row in self._read(args, kwargs)[:1]:
                self.counts[row] += int(flop_registry[packet](*args, **kwargs, out_val=result)) // 2
        elif packet in _FUSED:
            for row in self._read(args, kwargs):
                self.counts[row] += self._sites[row].weights * (args[0].numel() // args[0].shape[-1])
        return result

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """Return the sites among the operands."""
        places = [_place(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return [self._rows[place] for place in dict.fromkeys(places) if place is not None and place in self._rows]
