"""Verdicts follow from findings by one rule."""

from __future__ import annotations

import pytest

from geoquant.study.judging import Finding, judged
from geoquant.study.results import Results


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [([True, True], "holds"), ([True, False], "partly"), ([False, False], "fails"), ([], "not measured")],
)
def test_verdict_and_words_of_a_claim(holds: list[bool], verdict: str) -> None:
    findings = [Finding(f"place {number}", each) for number, each in enumerate(holds)]
    claim = judged("it holds", "a paper", Results((), "do it again"), findings)
    assert claim.verdict == verdict
    assert all(finding.what in claim.measured for finding in findings)
    assert (claim.claim, claim.source, claim.command) == ("it holds", "a paper", "do it again")
