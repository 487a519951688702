"""Which files lie beside a study's page? Its cells and rows as CSV and parquet, each figure and table as CSV.

Nothing is rounded on the way. A column that mixes numbers and words is words throughout in parquet, which has one type
a column; in CSV it stays as it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from geoquant import storage
from geoquant.findings import Claim, Figure, Table


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write rows under named columns, atomically."""
    with storage.atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write the same as parquet, each column of one type, atomically."""
    typed = frame.convert_dtypes()
    mixed = {str(name): typed[name].map(str, na_action="ignore") for name in typed.select_dtypes(object)}
    typed = typed.assign(**mixed).astype(dict.fromkeys(mixed, "string"))
    with storage.atomic_path(path) as temporary:
        typed.to_parquet(temporary, index=False)


def rows_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows that need not have the same columns; integers stay integers where some are missing."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})


def figure_frame(figure: Figure) -> pd.DataFrame:
    """Return every value that a figure shows, one a row."""
    places, values = figure.x or "x", figure.colour or figure.y or "y"
    rows = []
    for series in figure.series:
        for index, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            row: dict[str, Any] = {"series": series.name, f"x: {places}": x, f"y: {values}": y}
            if series.spread:
                row["standard deviation"] = series.spread[index]
            if series.notes:
                row["note"] = series.notes[index]
            rows.append(row)
    return rows_frame(rows)


def table_frame(table: Table) -> pd.DataFrame:
    """Return a study's table as it stands."""
    return pd.DataFrame(list(table.rows), columns=list(table.columns), dtype=object)


def claims_frame(claims: Sequence[tuple[str, Claim]]) -> pd.DataFrame:
    """Return claims with the study that each is of."""
    rows = [(study, each.claim, each.source, each.measured, each.verdict, each.command) for study, each in claims]
    return pd.DataFrame(rows, columns=["study", "claim", "source", "measured", "verdict", "command"], dtype=object)
