"""CAQ in two forms: as its source writes it, and with what is sound in its place.

As written ("Curvature-Guided Bit Allocation", docs/sources.md): κ is the mean stretch ‖Hv‖/‖v‖ of the Hessian of
‖f(x)‖² over random signs, L the norm of the weight matrix, and a layer at p bits errs by L‖x‖2^(−p) + κ‖x‖²2^(−2p); the
widths 4, 8, 16, 32 minimise bit-operations under a tolerance ε of the composed error, by projected gradient and
rounding up, and none may be below ½ log₂(κ diam²/ε). In the sound form the local error is a bound on what rounding
really does, ‖Ŵ − W‖‖x‖ of the layer's operator, L is the norm of the real operator, and the problem is solved exactly.
Both compose along a chain and pass over norms and shortcuts, so on nets that have some they are scores, not bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from geoquant.allocation import composed_errors
from geoquant.bounds import seed11_curvature_bits
from geoquant.errors import BudgetError
from geoquant.geometry import linear_map, mean_rademacher_stretch, spectral_norm
from geoquant.models import Site, get_weight
from geoquant.plan import Plan, allocate_cheapest
from geoquant.sensitivity import DamageTable, LayerConstants, Profile, Subject, caq_constants, composed_log_error, table

MENU = (4, 8, 16, "fp32")
"""The levels of the source, 32 bits being the float weight."""
TOLERANCES = 32
BEYOND = 2.0**12
"""How far above the error of the least exact plan tolerances go: only there do the least widths allow that plan."""


def written_constants(subject: Subject, probes: int = 20) -> tuple[LayerConstants, ...]:
    """Return the source's L and κ of every layer: of the weight matrix, and averaged over random signs."""
    found = []
    for site, sound in zip(subject.sites, caq_constants(subject), strict=True):
        layer = subject.model.get_submodule(site.name)
        matrix = site.matrix(get_weight(subject.model, site))
        kappa = energy_stretch(layer, sound.input_shape, probes, subject.seed)
        found.append(replace(sound, lipschitz=spectral_norm(matrix).value, kappa=kappa))
    return tuple(found)


def energy_stretch(layer: nn.Module, shape: Sequence[int], probes: int, seed: int) -> float:
    """Return the mean of ‖Hv‖/‖v‖ over random signs, H = 2AᵀA being the Hessian of ‖Ax + b‖².

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))   # H is diag(18, 2)
    >>> round(energy_stretch(layer, (2,), 20, 0), 6) == round((0.5 * (18**2 + 2**2)) ** 0.5, 6)
    True
    """
    shape = (layer.in_features,) if isinstance(layer, nn.Linear) else tuple(shape)
    operator = linear_map(layer, shape)

    def hessian(rows: torch.Tensor) -> torch.Tensor:
        return 2 * operator.adjoint(operator.forward(rows.view(-1, *shape))).flatten(1)

    return mean_rademacher_stretch(hessian, math.prod(shape), probes=probes, seed=seed).value


def disturbed(constants: Sequence[LayerConstants], factor: float, seed: int) -> tuple[LayerConstants, ...]:
    """Return the constants with every κ wrong by a factor drawn log-uniformly from 1/factor to factor.

    >>> layer = LayerConstants("a", 1.0, 1.0, 1.0, 0)
    >>> 0.5 <= disturbed([layer], 2.0, seed=0)[0].kappa <= 2.0
    True
    """
    draw = np.random.default_rng(seed)
    wrong = factor ** draw.uniform(-1, 1, len(constants))
    return tuple(replace(each, kappa=each.kappa * float(by)) for each, by in zip(constants, wrong, strict=True))


@dataclass(frozen=True)
class WrittenCaq:
    """The source's composed error of every choice, from constants that were measured before; ranks only."""

    constants: tuple[LayerConstants, ...]
    name: str = "caq_as_written"
    unit: str | None = None

    def estimated_cost(self, subject: Subject) -> float:
        """Return nothing: the constants are there."""
        return 0.0

    def measure(self, subject: Subject) -> DamageTable:
        """Compose what every layer errs with the later layers' L."""
        bits = np.array([grid.bits for grid in subject.grids], float)
        damage = np.exp(composed_log_error(self.constants, bits))
        return table(self.name, self.unit, subject, damage, np.zeros_like(damage), 0.0, subject.samples)


@dataclass(frozen=True)
class SoundCaq:
    """‖Ŵ − W‖·‖x‖ of every layer and grid, carried through the later layers' operator norms; ranks only.

    The norm of a convolution's displacement is bounded by √(kernel positions) times that of its matrix, which holds at
    any stride.
    """

    name: str = "caq_sound"
    unit: str | None = None

    def estimated_cost(self, subject: Subject) -> float:
        """Return one forward; norms look at no data."""
        return 1.0

    def measure(self, subject: Subject) -> DamageTable:
        """Bound every displacement, and compose."""
        constants = caq_constants(subject)
        local = np.array(
            [
                [
                    each.diameter * _displaced(subject, site, row, column) if grid.bits < 32 else 0.0
                    for column, grid in enumerate(subject.grids)
                ]
                for row, (site, each) in enumerate(zip(subject.sites, constants, strict=True))
            ]
        )
        order = np.argsort([each.order for each in constants])
        damage = np.empty_like(local)
        damage[order] = composed_errors(local[order], np.array([each.lipschitz for each in constants])[order])
        return table(self.name, self.unit, subject, damage, np.zeros_like(damage), 1.0, subject.samples)


def _displaced(subject: Subject, site: Site, row: int, column: int) -> float:
    moved = subject.displacement(row, column)
    positions = math.prod(moved.shape[2:]) if moved.dim() > 2 else 1
    return math.sqrt(positions) * float(torch.linalg.matrix_norm(site.matrix(moved).double(), 2))


def written_plans(profile: Profile, constants: Sequence[LayerConstants]) -> list[Plan]:
    """Return CAQ's plans as written, one per tolerance, from the most exact to the least; each plan once.

    Args:
        profile: with the table of `WrittenCaq` on the grids of the source's levels.
        constants: those of that table, for the least widths.
    """
    found: dict[tuple[str, ...], Plan] = {}
    for tolerance in tolerances(profile):
        plan = written_plan(profile, constants, tolerance)
        if plan is not None:
            found.setdefault(plan.names, plan)
    return list(found.values())


def tolerances(profile: Profile) -> list[float]:
    """Return tolerances from that of the most exact plan to that of the least exact one, evenly by their logarithm."""
    errors = np.array(profile.table(WrittenCaq.name).damage)
    return [float(each) for each in np.geomspace(1.001 * errors.min(1).sum(), BEYOND * errors.max(1).sum(), TOLERANCES)]


def written_plan(profile: Profile, constants: Sequence[LayerConstants], tolerance: float) -> Plan | None:
    """Return CAQ's plan of a tolerance; None where it is out of reach."""
    try:
        least = least_widths(constants, tolerance)
        return allocate_cheapest(profile, tolerance, method="gradient", lower=least).plan
    except BudgetError:
        return None


def least_widths(constants: Sequence[LayerConstants], tolerance: float) -> Mapping[str, float]:
    """Return the source's p* of every layer, at most 32.

    >>> least_widths([LayerConstants("a", 1.0, 16.0, 1.0, 0)], 1.0)
    {'a': 2.0}
    """
    return {
        each.site: min(max(seed11_curvature_bits(each.kappa, each.diameter, tolerance), 0.0), 32.0)
        for each in constants
    }


def naive_error(constants: Sequence[LayerConstants], widths: Mapping[str, float]) -> float:
    """Return the bound that ignores where in the net a layer stands: Σ local errors × ∏ of all L above 1.

    >>> layer = LayerConstants("a", 2.0, 8.0, 1.0, 0)      # errs by 2·2⁻¹ + 8·2⁻² = 3 at one bit, times 2
    >>> naive_error([layer], {"a": 1})
    6.0
    """
    local = [local_error(each, widths[each.site]) for each in constants]
    return sum(local) * math.prod(max(each.lipschitz, 1.0) for each in constants)


def composed_error(constants: Sequence[LayerConstants], widths: Mapping[str, float]) -> float:
    """Return the source's Φ of a plan: every layer's error through the L of the later layers.

    >>> layer = LayerConstants("a", 2.0, 8.0, 1.0, 0)
    >>> composed_error([layer], {"a": 1})
    3.0
    """
    ordered = sorted(constants, key=lambda each: each.order)
    local = [[local_error(each, widths[each.site])] for each in ordered]
    return float(composed_errors(local, [each.lipschitz for each in ordered]).sum())


def local_error(layer: LayerConstants, bits: float) -> float:
    """Return L‖x‖2^(−p) + κ‖x‖²2^(−2p), the source's error of a layer kept at p bits.

    >>> local_error(LayerConstants("a", 2.0, 8.0, 1.0, 0), 1)
    3.0
    """
    reach = float(layer.diameter * 2.0**-bits)
    return layer.lipschitz * reach + layer.kappa * reach**2


def facts(constants: Sequence[LayerConstants]) -> list[dict[str, Any]]:
    """Return the constants as JSON, in the order of execution."""
    ordered = sorted(constants, key=lambda each: each.order)
    return [
        {"layer": each.site, "kappa": each.kappa, "lipschitz": each.lipschitz, "diameter": each.diameter}
        for each in ordered
    ]
