"""How does a model compute with weights that stay packed in memory?

Each weight becomes a parametrization (`torch.nn.utils.parametrize`) over its packed parts: whoever reads the weight,
a layer or the attention around it, gets it unpacked, and it is gone afterwards. So memory is that of the artifact and
of one weight at a time. Nothing is faster than with float weights: that is the business of engines.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from geoquant.grids import ActivationScale, Grid, QuantizedMatrix
from geoquant.models import Site
from geoquant.models.intercept import unwatched
from geoquant.plan import Plan
from geoquant.quantize import install_

Model = TypeVar("Model", bound=nn.Module)


class PackedWeight(nn.Module):
    """Unpacks one weight whenever it is read.

    Args:
        site: whose weight it is.
        grid: of the packed parts.
        parts: the tensors that `Grid.stored` lists, by suffix.

    >>> from geoquant.models import find_sites
    >>> layer = nn.Linear(4, 2, bias=False)
    >>> site, grid = find_sites(layer)[0], Grid.parse("int4")
    >>> weight = PackedWeight(site, grid, grid.quantize(layer.weight).pack())
    >>> weight(torch.empty(0)).shape, sum(part.nbytes for part in weight.buffers())
    (torch.Size([2, 4]), 8)
    """

    def __init__(self, site: Site, grid: Grid, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.site, self.grid, self.names = site, grid, tuple(parts)
        for name, part in parts.items():
            self.register_buffer(name, part)

    def forward(self, placeholder: Tensor) -> Tensor:
        """Return the weight in float32; what is given stands for the weight that is not there."""
        parts = {name: self.get_buffer(name) for name in self.names}
        with unwatched():
            matrix = QuantizedMatrix.unpack(self.grid, self.site.matrix_shape, parts)
            return self.site.restore(matrix.dequantize())

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return an empty tensor: the weight lies in the packed parts."""
        return torch.empty(0)


def without_weights(model: Model, sites: tuple[Site, ...]) -> Model:
    """Return a copy of `model` in which the weights of `sites` take no memory."""
    parameters = [model.get_parameter(site.parameter) for site in sites]
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
        for parameter in parameters
    }
    return copy.deepcopy(model, memo)


def pack_(
    model: nn.Module, plan: Plan, parts: Mapping[str, Mapping[str, Tensor]], scales: Mapping[str, ActivationScale]
) -> None:
    """Let `model` read its weights from packed parts, and round its activations as `plan` says.

    Args:
        model: of the plan's layout.
        plan: a grid per site.
        parts: packed tensors of each site, by parameter name.
        scales: static scales by activation site.
    """
    install_(model, plan, scales)
    for site, grid in zip(plan.inventory.sites, plan.grids, strict=True):
        weight = PackedWeight(site, grid, parts[site.parameter])
        for name in (site.parameter, *site.aliases):
            path, _, last = name.rpartition(".")
            parametrize.register_parametrization(model.get_submodule(path), last, weight, unsafe=True)
