"""What does each way to spend the bytes give? Plans, quantized and evaluated side by side.

Every point goes through the same rounding, the same accounting and the same data, so points at equal
bytes can be compared; uniform widths on every grid are among them, as the baseline to beat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from torch import Tensor, nn

from geoquant.errors import BudgetError
from geoquant.evaluation import Mean, evaluate, logits
from geoquant.models import Forward
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.progress import task
from geoquant.quantize import quantize
from geoquant.sensitivity import Profile


@dataclass(frozen=True)
class Point:
    """One plan and how well it does.

    Attributes:
        method: family of the plan, such as "one_layer_kl + milp" or "uniform int:affine".
        label: which member, such as "3 average bits" or "int3:affine".
        average_bits: inclusive of scales, zero points and padding.
        bytes: size of the artifact on disk.
        accuracy, cross_entropy: on the evaluation data.
        kl: divergence from the float model on the evaluation data, nats per prediction.
    """

    method: str
    label: str
    average_bits: float
    bytes: int
    accuracy: Mean
    cross_entropy: Mean
    kl: Mean


def measure_point(
    model: nn.Module,
    plan: Plan | None,
    batches: Iterable[Any],
    method: str,
    label: str,
    forward: Forward | None = None,
    reference: Sequence[Tensor] | None = None,
    calibration: Sequence[Any] | None = None,
) -> Point:
    """Quantize a copy of `model` by `plan` and evaluate it; None stands for the float model, stored in fp32.

    `reference` holds the float model's logits where they are known already. With `calibration` the plan is carried
    out as `quantize_` does with data, without it by rounding to nearest.
    """
    batches = list(batches)
    stored = uniform_plan(model, "fp32") if plan is None else plan
    quantized = model if plan is None else quantize(model, plan, calibration, forward=forward)
    known = logits(model, batches, forward) if reference is None else reference
    result = evaluate(quantized, batches, forward, known)
    assert result.kl is not None  # a reference was given
    return Point(method, label, stored.average_bits, stored.bytes, result.accuracy, result.cross_entropy, result.kl)


def sweep(
    model: nn.Module,
    plans: Mapping[tuple[str, str], Plan],
    batches: Iterable[Any],
    forward: Forward | None = None,
    calibration: Sequence[Any] | None = None,
) -> tuple[Point, ...]:
    """Evaluate every plan as `measure_point` does; keys are (method, label). Equal plans are evaluated once."""
    batches = list(batches)
    reference = logits(model, batches, forward)
    known: dict[tuple[str, ...], Point] = {}
    points = []
    with task("evaluating plans", len(plans)) as advance:
        for (method, label), plan in plans.items():
            if plan.names not in known:
                known[plan.names] = measure_point(model, plan, batches, method, label, forward, reference, calibration)
            points.append(Point(**{**vars(known[plan.names]), "method": method, "label": label}))
            advance()
    return tuple(points)


def to_frame(points: Iterable[Point]) -> pd.DataFrame:
    """Return the points as a table: means and standard errors in columns of their own."""
    rows = []
    for point in points:
        row = asdict(point)
        for name in ("accuracy", "cross_entropy", "kl"):
            mean = row.pop(name)
            row |= {name: mean["value"], f"{name}_stderr": mean["stderr"]}
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_plans(
    profile: Profile, budgets: Iterable[float], solver: str = "milp", uniform: Iterable[str] | None = None
) -> dict[tuple[str, str], Plan]:
    """Return the plans that a comparison should show: every predictor at every budget, and uniform grids.

    Args:
        profile: the evidence; each of its tables is one predictor.
        budgets: average bits; those below the smallest possible plan are left out.
        solver: for all predictors alike.
        uniform: grids to show everywhere alike; the measured ones when None.
    """
    names = profile.grids if uniform is None else tuple(uniform)
    plans = {("uniform", name): uniform_plan(profile.inventory, name) for name in names}
    for table in profile.tables:
        for budget in budgets:
            try:
                plan = allocate(profile, Budget(average_bits=budget), predictor=table.predictor, solver=solver)
            except BudgetError:
                continue
            plans[f"{table.predictor} + {solver}", f"{budget:g} average bits"] = plan
    return plans
