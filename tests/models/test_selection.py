"""Patterns mean exactly what they say, and a typing mistake is an error with a hint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoquant.errors import LayerNameError
from geoquant.models import fused_groups, select

NAMES = ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer10.conv1", "head"]


def test_selection_keeps_the_order_of_the_model() -> None:
    assert select(NAMES, ["head", "stem", "re:layer1\\..*"]) == ("stem", "layer1.0.conv1", "layer1.0.conv2", "head")


def test_patterns_match_whole_names() -> None:
    assert select(NAMES, [r"re:layer1.*conv1"]) == ("layer1.0.conv1", "layer10.conv1")
    with pytest.raises(LayerNameError, match="whole name"):
        select(NAMES, ["re:conv1"])


def test_exact_names_are_no_expressions() -> None:
    """A dot in a plain name is a dot: 'layer1.0.conv1' must not match 'layer1x0.conv1'."""
    assert select(["layer1x0.conv1", *NAMES], ["layer1.0.conv1"]) == ("layer1.0.conv1",)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("layer1.0.con1", "did you mean 'layer1.0.conv1'"),
        ("layer1", r"say 're:layer1\\..*'"),
        ("re:(", "not a regular expression"),
        ("re:nothing.*", "matches no layer"),
    ],
)
def test_a_pattern_that_matches_nothing_says_what_to_do(pattern: str, hint: str) -> None:
    with pytest.raises(LayerNameError) as caught:
        select(NAMES, ["stem", pattern])
    assert hint.replace("\\\\", "\\") in str(caught.value)


def test_a_lone_string_is_one_pattern() -> None:
    assert select(NAMES, "head") == ("head",)


def test_fused_groups_by_captured_text_and_by_list() -> None:
    names = [f"{i}.{part}" for i in range(2) for part in ("q_proj", "k_proj", "v_proj", "gate", "up")]
    groups = fused_groups(names, [r"re:(\d)\.[qkv]_proj", ["0.up", "0.gate"]])
    assert groups == (
        ("0.q_proj", "0.k_proj", "0.v_proj"),
        ("1.q_proj", "1.k_proj", "1.v_proj"),
        ("0.gate", "0.up"),
    )


def test_a_pattern_without_capture_is_one_group() -> None:
    assert fused_groups(["a.q", "b.q", "c"], [r"re:.\.q"]) == (("a.q", "b.q"),)


def test_a_layer_in_two_groups_is_refused() -> None:
    with pytest.raises(LayerNameError, match=r"'a' is in two"):
        fused_groups(["a", "b", "c"], [["a", "b"], ["a", "c"]])


def test_a_bare_name_is_no_group() -> None:
    with pytest.raises(LayerNameError, match="neither a list"):
        fused_groups(["a", "b"], ["a"])


@given(st.lists(st.text("abc.", min_size=1, max_size=5), unique=True, min_size=1))
def test_every_name_selects_itself_alone(names: list[str]) -> None:
    for name in names:
        assert select(names, [name]) == (name,)
