"""What is a transform, what may it look at, and what does it say it did?

A transform rewrites a float model in place into one that computes the same function from parameters that round better:
same names, shapes and dtypes, so that a plan for the one fits the other. What it leaves as it was, it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from geoquant.models import Forward
from geoquant.plan import Plan
from geoquant.registry import Registry


@dataclass(frozen=True)
class Applied:
    """One change: which module was rewritten, for which readers, and what is to be said of it."""

    source: str
    targets: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        return f"{self.source} → {', '.join(self.targets)}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Skipped:
    """A module that was left as it was, and why."""

    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True)
class TransformReport:
    """What one transform did.

    Attributes:
        name: of the transform.
        applied: changes, in the order of execution.
        skipped: candidates that stay as they were, each with its reason.
    """

    name: str
    applied: tuple[Applied, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.applied)} applied, {len(self.skipped)} left"]
        lines += [f"  {each}" for each in self.applied]
        alike: dict[str, list[str]] = {}
        for each in self.skipped:
            alike.setdefault(each.reason, []).append(each.source)
        return "\n".join([*lines, *(f"  left {_few(sources)}: {reason}" for reason, sources in alike.items())])


def _few(names: Sequence[str]) -> str:
    """Name the first three.

    >>> _few(["a", "b"]), _few(list("abcde"))
    ('a, b', 'a, b, c and 2 more')
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True, eq=False)
class TransformContext:
    """What a transform may look at.

    Attributes:
        batches: calibration batches, at least one; the first also shows who reads what.
        plan: which grid each weight will get; None where that is not known yet.
        forward: how to call the model.
        seed: of every random draw.
    """

    batches: Sequence[Any]
    plan: Plan | None = None
    forward: Forward | None = None
    seed: int = 0


class Transform(Protocol):
    """Rewrites `model` in place. Laws: same function, same layout, deterministic; a second time does no harm.

    A transform that looks at the plan's grids says so with an attribute ``needs_plan = True``.
    """

    def __call__(self, model: nn.Module, context: TransformContext) -> TransformReport:
        """Rewrite `model`, which nobody else holds, and say what was done."""
        ...


TRANSFORMS: Registry[Transform] = Registry("transform")


def needs_plan(transform: Transform) -> bool:
    """Whether `transform` looks for scales on the grids of a plan."""
    return bool(getattr(transform, "needs_plan", False))
