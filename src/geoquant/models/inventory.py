"""What does a model hold: which tensors can be quantized, and which stay as they are?

The inventory is what a plan must know of a model to predict the size of its artifact without the model
at hand, and to refuse a model that it was not made for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from geoquant.errors import PlanError
from geoquant.models.batchnorm import folded_pairs
from geoquant.models.loading import TRAINING_COUNTERS, model_fingerprint
from geoquant.models.sites import Site, find_sites


@dataclass(frozen=True)
class TensorRecord:
    """A tensor that is stored as it is: its state-dict name, its torch dtype's name, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Inventory:
    """The sites of a model in order, every other stored tensor, and what its weights hash to.

    Attributes:
        sites: quantizable weights, tied ones once.
        others: parameters and persistent buffers that no plan touches.
        fingerprint: SHA-256 of names, dtypes, shapes and bytes of all tensors.
        folds: (layer, batch norm) pairs that were folded before measuring.
    """

    sites: tuple[Site, ...]
    others: tuple[TensorRecord, ...]
    fingerprint: str
    folds: tuple[tuple[str, str], ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights at all sites."""
        return sum(site.weights for site in self.sites)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites, in order."""
        return tuple(site.name for site in self.sites)

    def check_same_layout(self, other: Inventory) -> None:
        """Raise `PlanError` unless `other` has the same sites and the same other tensors."""
        if self.sites == other.sites and self.others == other.others and self.folds == other.folds:
            return
        missing = sorted(set(self.names) - set(other.names))
        extra = sorted(set(other.names) - set(self.names))
        if missing or extra:
            detail = f"layers only in the plan: {missing[:3] or 'none'}, only in the model: {extra[:3] or 'none'}"
        else:
            mine = [*self.sites, *self.others, self.folds]
            theirs = [*other.sites, *other.others, other.folds]
            differing = next((str(a) for a, b in zip(mine, theirs, strict=False) if a != b), "the number of tensors")
            detail = f"first difference at {differing}"
        raise PlanError(f"this plan was made for another model ({detail}); profile this model and allocate again")


def stored_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict without the counters that only training reads."""
    return {
        name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[2] not in TRAINING_COUNTERS
    }


def other_tensors(model: nn.Module, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
    """Return every stored tensor that belongs to no site (aliases of sites belong to them)."""
    taken = {name for site in sites for name in (site.parameter, *site.aliases)}
    return {name: tensor for name, tensor in stored_state(model).items() if name not in taken}


def take_inventory(model: nn.Module) -> Inventory:
    """List what `model` stores.

    >>> take_inventory(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))).names
    ('0',)
    """
    sites = find_sites(model)
    others = tuple(
        TensorRecord(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in other_tensors(model, sites).items()
    )
    return Inventory(sites, others, model_fingerprint(model), folded_pairs(model))
