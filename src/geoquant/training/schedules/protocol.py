"""What does a schedule see, and what does it answer?

A schedule is a frozen value. Asked at a moment of training, with what was measured up to then, it proposes a
precision for every layer, each with its reason. It keeps nothing between moments: what has to be remembered
(measurements, the present assignment, how often a change was proposed) is in the moment, so that a run resumes
exactly. Hysteresis is not the schedule's business either: `geoquant.training.adaptive` raises precision at once and
lowers it when the wish has held for `patience` decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from geoquant.errors import GeoquantError
from geoquant.registry import Registry
from geoquant.training.precision import Assignment, LayerPrecision

# What may be on the agenda after a step: measurements, then a decision on them.
CURVATURE, NOISE, WHOLE, DECIDE = "curvature", "noise", "whole", "decide"
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LayerFacts:
    """What is known of a layer at a moment. What was not measured yet, or not asked for, is None.

    Attributes:
        weights: their number.
        flops: floating-point operations of its products in an average step so far.
        gradient_norm: root mean square over recent steps of ‖g_i‖, the norm of the minibatch gradient of its weights.
        weight_norm: ‖θ_i‖.
        span: the range R_i of its weights, 2·max|w|.
        curvature: κ_i, the curvature of the loss along the sharpest direction met in the layer's own weights.
        gradient_share: ‖∇f_i‖/‖∇f‖ in float32 on the probe.
        noise: (layers,) squared errors that rounding *this* layer to one level either side of zero would make in the
            probe's gradient of each layer, in units of ‖∇f‖²; at other levels they shrink with the square of the step.
    """

    weights: int
    flops: float = 0.0
    gradient_norm: float | None = None
    weight_norm: float | None = None
    span: float | None = None
    curvature: float | None = None
    gradient_share: float | None = None
    noise: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Moment:
    """What a schedule decides on.

    Attributes:
        step: optimizer steps done.
        rate: the learning rate now.
        steps_per_epoch: None when the caller did not say.
        total_steps: None when the caller did not say.
        assignment: the precision of every layer now.
        layers: facts per layer, in the order of the model.
        coupling: (k, k) norms ‖H_ij u_j‖ for unit moves u_j of layer j, in that order; None when not measured.
        initial: facts at the first measurement, to compare with.
    """

    step: int
    rate: float
    steps_per_epoch: int | None
    total_steps: int | None
    assignment: Assignment
    layers: Mapping[str, LayerFacts]
    coupling: tuple[tuple[float, ...], ...] | None = None
    initial: Mapping[str, LayerFacts] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """A precision for one layer, and why."""

    precision: LayerPrecision
    reason: str


class Schedule(Protocol):
    """Decides precision during training. A frozen value."""

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels it chooses from, ascending; a NaN raises precision along them."""
        ...

    @property
    def patience(self) -> int:
        """Decisions in a row that must wish for fewer bits before they are given."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What it will ever ask to be measured: ``curvature``, ``noise``, both or nothing."""
        ...

    @property
    def needs_horizon(self) -> frozenset[str]:
        """Which of ``steps_per_epoch`` and ``total_steps`` the caller must give."""
        ...

    def agenda(self, step: int, steps_per_epoch: int | None) -> frozenset[str]:
        """Return what to do after `step` steps: measure ``curvature`` or ``noise``, ``decide``, or nothing.

        A measurement looks at the next layer in turn, the first one at all; ``whole`` makes every one look at all.
        """
        ...

    def propose(self, moment: Moment) -> dict[str, Proposal]:
        """Return a precision for every layer of the moment, also at step 0, before anything was measured."""
        ...


SCHEDULES: Registry[Callable[..., Schedule]] = Registry("schedule")


def make_schedule(spec: str, **options: Any) -> Schedule:
    """Return the schedule called `spec`: a registered name, or ``uniform:LEVEL`` and the like with one argument.

    Args:
        spec: ``name`` or ``name:argument``.
        options: keyword arguments of the schedule.

    Raises:
        UnknownNameError: there is no such schedule.
        GeoquantError: it does not take these options.

    >>> make_schedule("uniform:int6").levels
    ('int6', 'int8', 'int16', 'fp32')
    """
    name, _, argument = spec.partition(":")
    make = SCHEDULES[name]
    try:
        return make(argument, **options) if argument else make(**options)
    except TypeError as error:
        raise GeoquantError(f"the schedule '{spec}' cannot be made: {error}") from error
