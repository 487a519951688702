"""Tables of what training and trying bring back: from results to Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from common import RESULTS
from geoquant.findings import StudyFindings
from geoquant.study import STUDIES, gather
from result_tables import Document, markdown


def recovery(document: Document) -> str:
    """Training on the grids, scheme by scheme."""
    body = []
    for row in document["rows"]:
        spread = f" ± {row['spread']:.1f}" if row["seeds"] > 1 else ""
        asked = "" if row["target"] is None else f"{row['target']:.1f}"
        vision, begun = row["net"] == "ResNet-20", row["method"] != "trained from random weights"
        body.append(
            [
                f"{row['net']}, {row['scheme']}{', ' + row['variant'] if row['variant'] else ''}",
                row["method"],
                f"{row['accuracy_rounded']:.1f}" if begun else "",
                f"**{row['accuracy_result']:.1f}**{spread}" if vision else f"{row['accuracy_result']:.1f}{spread}",
                asked,
                f"{100 * row['lost_loss_recovered']:.0f} %" if begun else "",
                f"{row['steps']:,}",
                f"{row['cpu_minutes']:.0f}",
            ]
        )
    heads = ["net and grids", "method", "rounded, %", "trained, %", "asked", "of the lost loss", "steps", "CPU minutes"]
    return markdown(heads, body)


def refinement(document: Document) -> str:
    """Plans before and after refinement: divergence on images that took no part."""
    rows: Sequence[dict[str, Any]] = document["rows"]
    groups = dict.fromkeys((row["budget"], _kind(row)) for row in rows)
    body = []
    for budget, kind in groups:
        mine = [row for row in rows if (row["budget"], _kind(row)) == (budget, kind)]
        accepted = [row["accepted"] for row in mine if "accepted" in row]
        body.append(
            [
                f"{budget:g}",
                kind,
                f"{statistics.mean(accepted):.1f}" if accepted else "",
                *(_mean(mine, name, digits) for name, digits in (("held_out_kl", 4), ("test_kl", 4), ("accuracy", 2))),
            ]
        )
    return markdown(["bits", "plans compared by", "accepted", "held-out KL", "test KL", "test accuracy, %"], body)


def _kind(row: dict[str, Any]) -> str:
    return str(row["compared by"]).split(" (")[0]


def _mean(rows: Sequence[dict[str, Any]], name: str, digits: int) -> str:
    values = [row[name] for row in rows]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def steps(document: Document) -> str:
    """Times of training steps, as ratios to a float step of the same rounds."""
    rows = [[row["step"], f"{row['milliseconds']:.0f}", f"{row['ratio']:.2f}"] for row in document["rows"]]
    return markdown(["step", "milliseconds", "× float"], rows)


def few_bit_steps(document: Document) -> str:
    """What few bits cost a training step where they are simulated."""
    body = [
        [
            f"`{name}`",
            f"{1e3 * row['seconds']['float']:.0f}",
            f"{row['overhead']:.2f}",
            f"{row['noise_share']:.1%}",
            f"{row['curvature_share']:.1%}",
        ]
        for name, row in document["nets"].items()
    ]
    return markdown(["net", "float step, ms", "4-bit step × float", "noise, share of time", "curvature"], body)


def laptop(study: str) -> StudyFindings:
    """Read what the committed cells of a study say."""
    return gather(STUDIES[study], "laptop", RESULTS / "studies")


def study_table(study: str, name: str) -> str:
    """One table of a study, as its report has it."""
    table = next(each for each in laptop(study).tables if each.name == name)
    return markdown(table.columns, [["" if value is None else f"{value}" for value in row] for row in table.rows])


def study_claims(study: str) -> str:
    """Every claim of a study with its verdict."""
    return markdown(["claim", "verdict"], [[each.claim, each.verdict] for each in laptop(study).claims])
