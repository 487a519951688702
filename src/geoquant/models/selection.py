"""Which layers did the caller mean?

A pattern is an exact layer name or ``re:`` and a regular expression that must match a whole name. A
pattern that matches nothing is an error: a typing mistake must not quietly leave a layer as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from geoquant.errors import LayerNameError, suggest

_PREFIX = "re:"

# Layers that engines join into one matrix, under a name for their patterns. What a pattern captures names the group.
FUSED_LAYERS = {
    "llama": (r"re:(.*)\.(?:q|k|v)_proj", r"re:(.*)\.(?:gate|up)_proj"),  # Mistral, Qwen and Gemma are named likewise
}


def select(names: Sequence[str], patterns: Iterable[str]) -> tuple[str, ...]:
    r"""Return the names that at least one pattern matches, in the order of `names`.

    Raises:
        LayerNameError: a pattern matches nothing or is not a regular expression.

    >>> select(["stem", "block.0", "block.1"], [r"re:block\.\d", "stem"])
    ('stem', 'block.0', 'block.1')
    >>> select(["stem", "block.0"], ["blok.0"])
    Traceback (most recent call last):
    ...
    geoquant.errors.LayerNameError: no layer is named 'blok.0' (did you mean 'block.0'?)
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    wanted = {name for pattern in listed for name in _matching(names, pattern)}
    return tuple(name for name in names if name in wanted)


def fused_groups(names: Sequence[str], groups: Iterable[str | Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    r"""Return the groups of layers that must share one grid, each with at least two members.

    Args:
        names: all layer names.
        groups: each entry is a list of names (one group), or a ``re:`` pattern: names whose captured text
            is the same form a group, or a key of `FUSED_LAYERS`, such as ``"llama"``, for what engines join.

    Raises:
        LayerNameError: an entry matches nothing, or a layer is in two groups.

    >>> names = ["0.q_proj", "0.k_proj", "0.up", "1.q_proj", "1.k_proj"]
    >>> fused_groups(names, [r"re:(.*)\.(?:q|k|v)_proj"])
    (('0.q_proj', '0.k_proj'), ('1.q_proj', '1.k_proj'))
    >>> fused_groups(names, ["llama"])
    (('0.q_proj', '0.k_proj'), ('1.q_proj', '1.k_proj'))
    """
    listed = [groups] if isinstance(groups, str) else groups
    listed = [entry for group in listed for entry in _patterns(names, group)]
    found = [group for entry in listed for group in _groups_of(names, entry) if len(group) > 1]
    seen: set[str] = set()
    for name in (name for group in found for name in group):
        if name in seen:
            raise LayerNameError(f"the layer '{name}' is in two fused groups; a layer may be in one only")
        seen.add(name)
    return tuple(found)


def _patterns(names: Sequence[str], entry: str | Sequence[str]) -> Iterable[str | Sequence[str]]:
    """Put the patterns that match anything in the place of their common name."""
    if not isinstance(entry, str) or entry not in FUSED_LAYERS:
        return [entry]
    found = [pattern for pattern in FUSED_LAYERS[entry] if any(_compile(pattern).fullmatch(name) for name in names)]
    if not found:
        raise LayerNameError(
            f"no layer is named as in '{entry}' models ({', '.join(FUSED_LAYERS[entry])}){_few(names)}"
        )
    return found


def _groups_of(names: Sequence[str], entry: str | Sequence[str]) -> list[tuple[str, ...]]:
    if not isinstance(entry, str):
        return [select(names, entry)]
    if not entry.startswith(_PREFIX):
        known = ", ".join(FUSED_LAYERS)
        raise LayerNameError(f"the fused group '{entry}' is neither a list of names, nor a 're:' pattern, nor {known}")
    expression = _compile(entry)
    members: dict[tuple[str | None, ...], list[str]] = {}
    for name in _matching(names, entry):
        match = expression.fullmatch(name)
        members.setdefault(match.groups() if match else (), []).append(name)
    return [tuple(group) for group in members.values()]


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    if pattern.startswith(_PREFIX):
        expression = _compile(pattern)
        matched = [name for name in names if expression.fullmatch(name)]
        if not matched:
            raise LayerNameError(f"the pattern '{pattern}' matches no layer (it must match a whole name){_few(names)}")
        return matched
    if pattern not in names:
        raise LayerNameError(f"no layer is named '{pattern}'{_hint(names, pattern)}")
    return [pattern]


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix(_PREFIX))
    except re.error as error:
        raise LayerNameError(f"the pattern '{pattern}' is not a regular expression: {error}") from error


def _hint(names: Sequence[str], pattern: str) -> str:
    """Say what may have been meant: the inside of a container, or a name spelt nearly so."""
    if any(name.startswith(f"{pattern}.") for name in names):
        return f" (for every layer inside it say 're:{re.escape(pattern)}\\..*')"
    return suggest(pattern, names)


def _few(names: Sequence[str]) -> str:
    return f"; the first layers are {', '.join(names[:3])}" if names else ""
