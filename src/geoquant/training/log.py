"""What was decided during a run, when, and why; and what went wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from geoquant.training.precision import LayerPrecision

APART = 25  # steps between facts that are kept


@dataclass(frozen=True)
class Change:
    """One layer's precision changed.

    Attributes:
        step: after so many optimizer steps.
        layer: its name.
        before: the precision until then.
        after: the precision from then on.
        reason: the schedule's, with the numbers it rests on.
    """

    step: int
    layer: str
    before: LayerPrecision
    after: LayerPrecision
    reason: str

    def __str__(self) -> str:
        parts = [f"{f} {a}→{b}" for f, a, b in _differences(self.before, self.after)]
        return f"step {self.step}, {self.layer}: {', '.join(parts) or 'unchanged'} ({self.reason})"


@dataclass
class Log:
    """What happened in a run.

    Attributes:
        changes: of precision, in order.
        anomalies: the steps that were left out for NaN or Inf.
        seen: at decisions: the step, and per layer the gradient norm and the curvature (None where not measured).
    """

    changes: list[Change] = field(default_factory=list)
    anomalies: list[int] = field(default_factory=list)
    seen: list[tuple[int, dict[str, list[float | None]]]] = field(default_factory=list)

    def see(self, step: int, facts: dict[str, list[float | None]]) -> None:
        """Keep the facts of a decision, unless the last kept ones are of a moment ago.

        >>> log = Log()
        >>> [log.see(step, {}) for step in (1, 2, 30)] and [step for step, _ in log.seen]
        [1, 30]
        """
        if not self.seen or step - self.seen[-1][0] >= APART:
            self.seen.append((step, facts))

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        changes = [asdict(change) for change in self.changes]
        return {"changes": changes, "anomalies": list(self.anomalies), "seen": [list(one) for one in self.seen]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was."""
        self.anomalies = list(state["anomalies"])
        self.seen = [(step, values) for step, values in state["seen"]]
        self.changes = [
            Change(
                one["step"],
                one["layer"],
                LayerPrecision(**one["before"]),
                LayerPrecision(**one["after"]),
                one["reason"],
            )
            for one in state["changes"]
        ]


def _differences(before: LayerPrecision, after: LayerPrecision) -> list[tuple[str, str, str]]:
    old, new = asdict(before), asdict(after)
    return [(name, old[name], new[name]) for name in old if old[name] != new[name]]
