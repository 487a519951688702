"""Two measures of the project's sources, under the names of what they are.

The Hessian of ‖f(x)‖² has been called a layer's curvature; it is the sensitivity of the output's energy,
which for a linear map is 2σ². And the mean stretch of random sign vectors has been taken for the largest
eigenvalue; it is about the root mean square of the spectrum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geoquant.errors import GeoquantError
from geoquant.geometry.evidence import Estimate, RunningMean
from geoquant.geometry.lanczos import Apply, dominant
from geoquant.geometry.pointwise import Map, hessian_rows, points_of
from geoquant.geometry.probes import gaussian, signs


def output_energy_sensitivity(
    function: Map, points: Tensor, *, tolerance: float = 1e-4, max_steps: int = 200, seed: int = 0
) -> Estimate:
    """Return the largest Hessian norm of ‖f(x)‖² in x at given points.

    Another quantity than curvature: for f = Wx it is 2σ_max(W)², and it vanishes for no affine map but constants.
    Double backward (Pearlmutter) with restarted Lanczos; source: docs/sources.md, "Curvature-Guided Bit
    Allocation".

    >>> layer = torch.nn.Linear(2, 2, bias=False).double()
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    >>> round(output_energy_sensitivity(layer, torch.zeros(1, 2).double()).value, 6)
    18.0
    """
    with points_of(function, points) as (x, y):
        start = gaussian([x.flatten(1)], seed)[0]
        found = dominant(hessian_rows(y.square().sum(), x), start, tolerance=tolerance, max_steps=max_steps)
    sizes = found.values[:, 0].abs()
    place = int(sizes.argmax())
    return Estimate(
        float(sizes[place]),
        samples=len(points),
        cost=6.0 * found.steps,
        residual=float(found.residuals[place, 0]),
        method="lanczos on the Hessian of ‖f(x)‖²",
        note="largest at the given points",
    )


def mean_rademacher_stretch(apply: Apply, size: int, *, probes: int = 20, seed: int = 0) -> Estimate:
    """Return the mean of ‖Mv‖/‖v‖ over random signs v: about √(tr M²/d), and *not* the largest eigenvalue.

    Kept because it has been used for it (docs/sources.md, "Curvature-Guided Bit Allocation").

    Args:
        apply: rows (1, size), float64 ↦ rows·M.
        size: d.
        probes: random sign vectors, at least 2.
        seed: of the signs.

    >>> spectrum = torch.cat([torch.tensor([100.0]), torch.ones(49)])
    >>> print(mean_rademacher_stretch(lambda rows: rows * spectrum, 50))  # λ_max is 100
    14.1767 ± 0 (mean ‖Mv‖/‖v‖, 20 samples)
    """
    if probes < 2:
        raise GeoquantError(f"probes={probes} gives no standard error; use at least 2")
    mean = RunningMean()
    for probe in range(probes):
        v = signs([torch.zeros(1, size, dtype=torch.float64)], seed, probe)[0]
        mean.add(apply(v).norm() / v.norm())
    return Estimate(float(mean.mean), float(mean.stderr), samples=probes, cost=6.0 * probes, method="mean ‖Mv‖/‖v‖")
