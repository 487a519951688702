"""Problems in one or two dimensions whose course under straight-through training is known exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.grids import FORMATS, LevelSet
from geoquant.recovery import Latents, Objective, Settings, Stepper, prepare_

GAP = 0.7
# The grid {−0.2 + 0.7 k} of the river toy, and the same without its one codeword inside the basin.
for _name, _shift in (("river", -0.2), ("dry", 0.5)):
    FORMATS.register(_name, LevelSet(_name, tuple((_shift + GAP * k) / GAP for k in (-3, -2, -1, 0, 1, 2))))


class Point(nn.Module):
    """A coordinate n that is quantized, and a coordinate t along the river that is not."""

    def __init__(self, n: float) -> None:
        super().__init__()
        self.across = nn.Linear(1, 1, bias=False)
        self.along = nn.Parameter(torch.zeros(1, 1))
        with torch.no_grad():
            self.across.weight.fill_(n)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.along, self.across(x)], 1)


BATCH = torch.ones(1, 1)


def river_loss(point: Tensor, _: Any) -> Tensor:
    """f(t, n) = −0.2 t + max(|n| − 0.4, 0)."""
    return -0.2 * point[0, 0] + torch.relu(point[0, 1].abs() - 0.4)


def walk(
    start: float, grid: str, loss: Any, rate: float, steps: int, scale: float = GAP, **settings: Any
) -> tuple[list[float], list[float], Latents]:
    """Train one coordinate by plain gradient descent; return latent and quantized values before each step and after."""
    float_model, model = Point(start), Point(start)
    plan = gq.uniform_plan(model, f"{grid}:fp32")
    gq.quantize_(model, plan, rounding=FixedScale(scale))
    chosen = Settings(
        steps=steps, optimizer="sgd", momentum=0, rate=rate, free_rate=rate, schedule="constant", warmup=0
    )
    latents = prepare_(model, reference=float_model, method="ste")
    latents.watch_()
    stepper = Stepper(model, latents, Objective(loss), chosen, steps)
    w, q = [], []
    for step in range(steps + 1):
        w.append(float(latents.latent("across.weight")))
        q.append(float(model.across.weight.detach()))
        latents.begin_step_(step / steps, Settings(steps=steps, **settings))
        stepper.gradient_(BATCH)
        stepper.move_(step)
    return w, q, latents


class FixedScale:
    """Nearest rounding with a given scale."""

    uses_inputs = False

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, matrix: Tensor, grid: gq.Grid, context: Any) -> Any:
        from geoquant.grids import QuantizedMatrix, Scales

        scales = Scales(torch.full((len(matrix), 1), self.scale))
        return QuantizedMatrix(grid, grid.encode(matrix, scales), scales)
