"""The study of the documentation runs as it stands, and is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from geoquant.study import STUDIES, gather, run_study

PAGE = Path(__file__).parents[2] / "docs" / "studies.md"


def test_the_study_of_one_s_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STUDIES, "_items", dict(STUDIES._items))
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "docs"})
    study = STUDIES["rounding"]
    assert study.claims[0](gather_nothing()).verdict == "not measured"
    assert run_study(study, "quick", tmp_path).failed == ()
    found = gather(study, "quick", tmp_path)
    assert found.claims[0].verdict == "holds"
    assert found.figures[0].series[0].x == (2, 3, 4)


def gather_nothing():
    from geoquant.study import Results

    return Results(())
