"""Findings refuse what nobody could draw or read."""

from __future__ import annotations

import pytest

from geoquant.errors import StudyError
from geoquant.findings import Claim, Figure, Series, Table

LINE = Series("a", (1, 2), (3.0, None))


def test_verdicts_are_four_words() -> None:
    with pytest.raises(StudyError, match="'true' is no verdict; expected one of holds, fails, partly, not measured"):
        Claim("c", "s", "m", "true", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [{"y": (1.0,)}, {"spread": (1.0,)}, {"notes": ("a", "b", "c")}])
def test_series_have_columns_of_one_length(columns: dict[str, tuple[object, ...]]) -> None:
    with pytest.raises(StudyError, match="expected equally many"):
        Series(**{"name": "a", "x": (1, 2), "y": (3.0, 4.0), **columns})  # type: ignore[arg-type]


def test_figures_have_a_known_kind_and_words() -> None:
    with pytest.raises(StudyError, match="'pie' is no kind of figure"):
        Figure("f", "pie", "t", "x", "y", (LINE,), "words")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="give alt="):
        Figure("f", "lines", "t", "x", "y", (LINE,), " ")


def test_rows_fit_their_columns() -> None:
    with pytest.raises(StudyError, match="1 values under 2 columns"):
        Table("t", "title", ("a", "b"), ((1, 2), (3,)))
