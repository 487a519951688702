"""How large an output change can be found by looking for it?

Random points of a box, and projected sign-gradient ascent (PGD, Madry et al., arXiv 1706.06083) on every output in both
directions. What is found is a lower bound of the worst change: a bound below it would be false, and the ratio of a
bound to it is the bound's gap factor.

Where the answer stops: an attack that finds little proves nothing. Points are float64, so that what is found is a
property of the two functions and not of float32 rounding.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from geoquant.errors import GeoquantError

_BATCH = 2048


def change_size(change: Tensor, norm: str) -> Tensor:
    """Measure output changes (N, …) per row: the ``"largest"`` absolute output change or its ``"euclidean"`` norm.

    Raises:
        GeoquantError: an unknown norm.

    >>> change = torch.tensor([[3.0, -4.0]])
    >>> change_size(change, "largest").item(), change_size(change, "euclidean").item()
    (4.0, 5.0)
    """
    if norm == "largest":
        return change.flatten(1).abs().amax(1)
    if norm == "euclidean":
        sizes: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
        return sizes
    raise GeoquantError(f"a change is measured by its 'largest' output or 'euclidean' norm, got '{norm}'")


def sampled_error(
    model: nn.Module,
    quantized: nn.Module,
    inputs: Tensor,
    radius: float | Tensor,
    *,
    samples: int = 1000,
    norm: str = "largest",
    seed: int = 0,
) -> Tensor:
    """Return the size of the largest output change over random points of each box; float64 (N,).

    Args:
        model: the float model, in eval mode.
        quantized: the model that it is compared with.
        inputs: (N, …) centers of the boxes.
        radius: half width, a number or broadcastable against `inputs`.
        samples: points per box: half uniform in the box, half on its corners.
        norm: see `change_size`.
        seed: of the points.

    Raises:
        GeoquantError: no samples are asked for.

    >>> double, triple = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(double.weight, 2.0), nn.init.constant_(triple.weight, 3.0)
    >>> round(float(sampled_error(double, triple, torch.ones(1, 1), 0.5)), 9)    # x on [0.5, 1.5]: a corner is worst
    1.5
    """
    if samples < 1:
        raise GeoquantError(f"at least one sample is needed, got {samples}")
    pair, generator = _wide(model, quantized), torch.Generator().manual_seed(seed)
    found = []
    for center, reach in _boxes(inputs, radius):
        worst = torch.zeros((), dtype=torch.float64)
        for start in range(0, samples, _BATCH):
            noise = torch.rand(min(_BATCH, samples - start), *center.shape, dtype=torch.float64, generator=generator)
            noise = noise * 2 - 1
            noise[1::2] = noise[1::2].sign()
            worst = torch.maximum(worst, change_size(_change(*pair, center + reach * noise), norm).max())
        found.append(worst)
    return torch.stack(found)


def attacked_error(
    model: nn.Module,
    quantized: nn.Module,
    inputs: Tensor,
    radius: float | Tensor,
    *,
    restarts: int = 2,
    steps: int = 40,
    norm: str = "largest",
    seed: int = 0,
) -> Tensor:
    """Return the size of the largest output change that PGD finds in each box; float64 (N,).

    Every output is attacked upward and downward, `restarts` times each, so a box gets 2 · outputs · restarts attacks.

    Args:
        model: the float model, in eval mode.
        quantized: the model that it is compared with.
        inputs: (N, …) centers of the boxes.
        radius: half width, a number or broadcastable against `inputs`.
        restarts: random starting points per output and direction; the first start is the center.
        steps: of sign-gradient ascent, half the radius at first and shrinking to a fiftieth.
        norm: see `change_size`; the attack climbs single outputs whichever is measured.
        seed: of the starting points.

    Raises:
        GeoquantError: no restart is asked for.
    """
    if restarts < 1 or steps < 0:
        raise GeoquantError(f"at least one restart and no negative steps are needed, got {restarts} and {steps}")
    pair, generator = _wide(model, quantized), torch.Generator().manual_seed(seed)
    return torch.stack([_attack(pair, *one, restarts, steps, norm, generator) for one in _boxes(inputs, radius)])


def _attack(
    pair: tuple[nn.Module, nn.Module],
    center: Tensor,
    reach: Tensor,
    restarts: int,
    steps: int,
    norm: str,
    generator: torch.Generator,
) -> Tensor:
    outputs = _change(*pair, center[None]).numel()
    targets = torch.cat([torch.eye(outputs), -torch.eye(outputs)]).double().repeat(restarts, 1)
    noise = torch.rand(len(targets), *center.shape, dtype=torch.float64, generator=generator) * 2 - 1
    noise[: 2 * outputs] = 0
    worst = []
    for part in range(0, len(targets), _BATCH):
        target, points = targets[part : part + _BATCH], center + reach * noise[part : part + _BATCH]
        for step in range(steps):
            points.requires_grad_()
            with torch.enable_grad():
                goal = (_difference(*pair, points).flatten(1) * target).sum()
                (slope,) = torch.autograd.grad(goal, points)
            pace = max(0.5 * 0.9**step, 0.02)
            moved = points.detach() + pace * reach * slope.sign()
            points = torch.minimum(torch.maximum(moved, center - reach), center + reach)
        worst.append(change_size(_change(*pair, points.detach()), norm).max())
    return torch.stack(worst).max()


def _boxes(inputs: Tensor, radius: float | Tensor) -> list[tuple[Tensor, Tensor]]:
    centers = inputs.detach().double()
    radii = torch.as_tensor(radius, dtype=torch.float64).expand_as(centers)
    return list(zip(centers, radii, strict=True))


def _wide(model: nn.Module, quantized: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Copy both models to float64 in eval mode, without gradients for their weights."""
    first, second = (copy.deepcopy(one).double().eval().requires_grad_(False) for one in (model, quantized))
    return first, second


def _difference(model: nn.Module, quantized: nn.Module, x: Tensor) -> Tensor:
    change: Tensor = quantized(x) - model(x)
    return change


def _change(model: nn.Module, quantized: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return _difference(model, quantized, x)
