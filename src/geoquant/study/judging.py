"""From findings to a verdict: a claim holds when every finding bears it out, and fails when none does.

The rule is the same for all studies, so that a verdict follows from the cells alone. A finding is one place where the
claim could have failed (a net, a width) with its figures in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from geoquant.findings import Claim, Verdict
from geoquant.study.results import Results, summary


@dataclass(frozen=True)
class Finding:
    """One place where a claim was tried.

    Attributes:
        what: where, and what was measured, with units.
        holds: whether it bears the claim out.
    """

    what: str
    holds: bool


def judged(claim: str, source: str, results: Results, findings: Iterable[Finding]) -> Claim:
    """Return a claim with its verdict: all findings bear it out, some do, none does, or there is none.

    >>> judged("it floats", "folklore", Results((), "try it"), [Finding("cork", True), Finding("iron", False)]).verdict
    'partly'
    """
    found = list(findings)
    if not found:
        return Claim(claim, source, "not among the finished cells", "not measured", results.command)
    measured = "; ".join(each.what for each in found)
    return Claim(claim, source, measured, verdict([each.holds for each in found]), results.command)


def verdict(parts: Sequence[bool]) -> Verdict:
    """Return what the parts say together.

    >>> verdict([True, True]), verdict([True, False]), verdict([False]), verdict([])
    ('holds', 'partly', 'fails', 'not measured')
    """
    if not parts:
        return "not measured"
    return "holds" if all(parts) else "partly" if any(parts) else "fails"


def spread(values: Sequence[float], unit: str = "") -> str:
    """Write a mean with its deviation and how many values it is of.

    >>> spread([1.0, 3.0], " %"), spread([2.0])
    ('2.0 ± 1.4 % (2 seeds)', '2.0 (1 seed)')
    >>> spread([-0.01])  # nothing below zero is seen at this precision
    '0.0 (1 seed)'
    """
    found = summary(list(values))
    if found is None:
        return "nothing"
    deviation = "" if found.deviation is None else f" ± {found.deviation:.1f}"
    return f"{found.mean:z.1f}{deviation}{unit} ({found.count} seed{'s' if found.count > 1 else ''})"
