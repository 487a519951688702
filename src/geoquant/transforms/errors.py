"""What would rounding cost at a layer's output, if channels were scaled first?

Estimates from second moments and samples of the inputs in float: errors of layers before are not in them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from geoquant.geometry import fit_scale, range_of
from geoquant.grids import ActivationGrid, Grid
from geoquant.models import Site
from geoquant.plan import Plan
from geoquant.rounding import Rounding, RoundingContext
from geoquant.rounding.output_error import output_error


def weight_error(site: Site, grid: Grid, weight: Tensor, moment: Tensor, spread: Tensor, rounding: Rounding) -> Tensor:
    """Return the mean squared error of each output channel when weight · spread is rounded, in the weight's own units.

    Args:
        site: of the weight.
        grid: where it goes.
        weight: as it is.
        moment: E[x xᵀ] of what the layer multiplies now, (groups, fan_in, fan_in).
        spread: positive factors that broadcast to the weight; what it multiplies is divided by them.
        rounding: how it goes there.
    """
    factors = site.matrix(spread.double().expand(weight.shape).contiguous())
    matrix = (site.matrix(weight).double() * factors).float()
    moment = moment.to(factors)
    of_group = factors[:: len(factors) // len(moment)]
    context = RoundingContext(moment / (of_group[:, :, None] * of_group[:, None, :]))
    error = (rounding(matrix, grid, context).dequantize().double() - matrix.double()) / factors
    rows = error.view(len(moment), -1, error.shape[1])
    return torch.cat([output_error(part, own) for part, own in zip(rows, moment, strict=True)])


def input_noise(values: Tensor, grid: ActivationGrid, factor: Tensor, by_token: bool = True) -> Tensor:
    """Return the mean squared error of each input channel when values / factor are rounded, in the values' own units.

    Args:
        values: (inputs, positions).
        grid: where they go.
        factor: (inputs,).
        by_token: whether positions are tokens; else a grid per token counts as one per tensor.

    >>> values = torch.tensor([[0.0, 3.0], [0.0, 0.6]])
    >>> grid = ActivationGrid.parse("int2:affine:minmax")
    >>> [round(float(each), 2) for each in input_noise(values, grid, torch.tensor([1.0, 1.0]))]
    [0.0, 0.08]
    >>> [round(float(each), 2) for each in input_noise(values, grid, torch.tensor([1.0, 0.2]))]
    [0.0, 0.0]
    """
    scaled = (values.double() / factor[:, None]).float().T.contiguous()
    if grid.dynamic:
        rounded = (grid if by_token else replace(grid, per_token=False)).quantize_dynamically(scaled)
    else:
        rounded = grid.quantize(scaled, fit_scale(range_of([scaled]), grid))
    return (rounded - scaled).double().square().mean(0) * factor.square()


def site_of(layer: str, plan: Plan) -> tuple[Site, Grid]:
    """Return the plan's site and grid of a layer's weight."""
    wanted = f"{layer}.weight" if layer else "weight"
    pairs = zip(plan.inventory.sites, plan.grids, strict=True)
    return next((site, grid) for site, grid in pairs if wanted in (site.parameter, *site.aliases))
