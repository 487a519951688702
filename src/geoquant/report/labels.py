"""How are names and numbers written where a person reads them?

Plots show text through plotly, which reads a little HTML in it; everything that comes from outside (names
of layers above all) goes through `plot_text` first. Tables are escaped by their template instead.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geoquant.plan import Plan

RANKS_ONLY = "score, ranks only"


def plot_text(text: str) -> str:
    """Return `text` such that plotly shows it letter by letter.

    >>> plot_text("<b>&")
    '&lt;b&gt;&amp;'
    """
    return html.escape(text, quote=False)


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of `text` so that `limit` characters remain; the end says more than the beginning.

    >>> shorten("model.layers.31.self_attn.q_proj", 16)
    'mod…_attn.q_proj'
    """
    if len(text) <= limit:
        return text
    head = (limit - 1) // 4
    return text[:head] + "…" + text[len(text) - (limit - 1 - head) :]


def short_names(names: Sequence[str], limit: int) -> tuple[str, ...]:
    """Fit dotted names of layers into `limit` characters, keeping what tells them apart.

    What all names begin with goes first, then all words but the last become initials; only
    then the middle is cut. Names that fit stay as they are.

    >>> short_names(["model.layers.30.self_attn.q_proj", "model.layers.31.mlp.up_proj"], 15)
    ('30.sa.q_proj', '31.m.up_proj')
    >>> short_names(["layer1.0.conv1", "fc"], 15)
    ('layer1.0.conv1', 'fc')
    """
    if all(len(name) <= limit for name in names):
        return tuple(names)
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    rest = [each[shared:] for each in parts]
    if any(len(".".join(each)) > limit for each in rest):
        rest = [[_initials(word) if i < len(each) - 1 else word for i, word in enumerate(each)] for each in rest]
    return tuple(shorten(".".join(each), limit) for each in rest)


def _initials(word: str) -> str:
    """Return the first letters of a name's words; numbers and short words stay."""
    return word if len(word) <= 2 or word.isdigit() else "".join(part[:1] for part in word.split("_"))


def unit_text(unit: str | None) -> str:
    """Name the unit of a damage table; tables without one only rank.

    >>> unit_text(None)
    'score, ranks only'
    """
    return unit or RANKS_ONLY


def quantity(value: float | None) -> str:
    """Write a damage or a score with three significant digits.

    >>> quantity(0.012345), quantity(0.0), quantity(None)
    ('0.0123', '0', '–')
    >>> quantity(4.2e-7)
    '4.2e-07'
    """
    return "–" if value is None else f"{value:.3g}"


def percent(share: float, digits: int = 1) -> str:
    """Write a share of one as a percentage.

    >>> percent(0.975)
    '97.5 %'
    """
    return f"{100 * share:.{digits}f} %"


def number(value: float | str | None, deviation: float | None = None) -> str:
    """Write any value of a study: integers and large numbers whole, others with four digits, a spread with two.

    >>> number(12345), number(0.123456), number("int4"), number(None), number(98.147, 0.0712)
    ('12,345', '0.1235', 'int4', '–', '98.15 ± 0.071')
    """
    if value is None or isinstance(value, str):
        return value or "–"
    large = 1e4 <= abs(value) < 1e15
    text = f"{value:,.0f}" if isinstance(value, int) or large else f"{value:.4g}"
    return (text if deviation is None else f"{text} ± {deviation:.2g}").replace("-", "−")


def counted(number: int, noun: str) -> str:
    """Write how many there are.

    >>> counted(1, "plan"), counted(1200, "cell")
    ('1 plan', '1,200 cells')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def measured(value: float, stderr: float, digits: int) -> str:
    """Write a value with its standard error.

    >>> measured(91.7, 0.28, 2)
    '91.70 ± 0.28'
    """
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def duration(seconds: float) -> str:
    """Write a wall time.

    >>> duration(0.0004), duration(0.042), duration(3.14), duration(250), duration(7500)
    ('< 1 ms', '42 ms', '3.1 s', '4 min 10 s', '2 h 5 min')
    """
    if 0 < seconds < 0.001:
        return "< 1 ms"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds >= 7200:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours:,} h {minutes} min"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def plan_label(plan: Plan) -> str:
    """Name a plan by the budget it was solved for; one written by hand by its grid, or by its size."""
    if plan.evidence is not None:
        return str(plan.evidence.request.budget)
    if len(set(plan.names)) == 1:
        return f"uniform {plan.names[0]}"
    return f"{plan.average_bits:.2f} average bits"


def plan_labels(plans: Sequence[Plan]) -> tuple[str, ...]:
    """Name every plan, and no two alike: by predictor and solver, then by number where that is not enough."""
    labels = [plan_label(plan) for plan in plans]
    counts = Counter(labels)
    for index, plan in enumerate(plans):
        if counts[labels[index]] > 1 and plan.evidence is not None:
            labels[index] += f", {plan.evidence.table.predictor} + {plan.evidence.request.solver}"
    seen: Counter[str] = Counter()
    unique = []
    for label in labels:
        seen[label] += 1
        unique.append(label if seen[label] == 1 else f"{label} (#{seen[label]})")
    return tuple(unique)
