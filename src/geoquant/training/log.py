"""What was decided during a run, when, and why; and what went wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from geoquant.training.precision import LayerPrecision


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
    """The changes of precision of a run, in order, and the steps that were left out for NaN or Inf."""

    changes: list[Change] = field(default_factory=list)
    anomalies: list[int] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"changes": [asdict(change) for change in self.changes], "anomalies": list(self.anomalies)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was."""
        self.anomalies = list(state["anomalies"])
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
