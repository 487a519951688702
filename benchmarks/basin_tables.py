"""Tables of what diagnoses predicted and what happened, from `basin_prediction.json`."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from geoquant.basin import VERDICTS
from result_tables import markdown

Document = dict[str, Any]


def confusion(document: Document) -> str:
    """What happened against what was predicted, for the cases that thresholds were not fitted to and for the others.

    >>> part = {"cases": 3, "balanced_accuracy": 0.75, "confusion": {"ptq": {"ptq": 1}, "qat": {"qat": 1, "ptq": 1}}}
    >>> print(confusion({"check": part, "fit": part}).splitlines()[2])
    | not used for thresholds | ptq | 1 | 0 | 0 | 0 |
    """
    rows = []
    for part, words in (("check", "not used for thresholds"), ("fit", "used for thresholds")):
        for true in VERDICTS:
            found = document[part]["confusion"].get(true, {})
            rows.append([words, true, *(str(found.get(guess, 0)) for guess in VERDICTS)])
    return markdown(["cases", "happened", *(f"predicted {guess}" for guess in VERDICTS)], rows)


def nets(document: Document) -> str:
    """How many cases of each net fell into each class, how many verdicts were right, and what they cost."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in document["rows"]:
        groups.setdefault(row["case"].split("/")[0], []).append(row)
    body = []
    for name, rows in (*groups.items(), ("all", document["rows"])):
        counts = Counter(row["happened"] for row in rows)
        right = sum(row["predicted"] == row["happened"] for row in rows)
        seconds = [row["cpu_seconds"][0] for row in rows]
        cost = "" if name == "all" else f"{statistics.median(seconds):.0f} ({max(seconds):.0f})"
        body.append([name, *(str(counts[each]) for each in VERDICTS), f"{right} of {len(rows)}", cost])
    return markdown(["net", *VERDICTS, "right verdicts", "processor seconds of a diagnosis: median (most)"], body)
