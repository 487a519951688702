"""Text on plots says what it was given, and short names still tell layers apart."""

from __future__ import annotations

import html

from hypothesis import given
from hypothesis import strategies as st

from geoquant.plan import uniform_plan
from geoquant.report.labels import duration, measured, plan_labels, plot_text, quantity, short_names, shorten


@given(st.text())
def test_plot_text_is_undone_by_an_html_reader(text: str) -> None:
    assert "<" not in plot_text(text)
    assert html.unescape(plot_text(text)) == html.unescape(html.escape(text, quote=False))


@given(st.text(max_size=80), st.integers(4, 40))
def test_shorten_keeps_the_limit_and_leaves_short_texts_alone(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(short) <= limit
    assert (short == text) == (len(text) <= limit) or "…" in text
    assert short.endswith(text[-(limit // 2) :] if text else "")


@given(st.lists(st.text("abc._0", min_size=1, max_size=30), min_size=1, max_size=6), st.integers(4, 20))
def test_short_names_keep_the_limit(names: list[str], limit: int) -> None:
    assert all(len(name) <= limit for name in short_names(names, limit))


def test_short_names_of_a_transformer_stay_distinct() -> None:
    names = [
        f"model.layers.{block}.{part}"
        for block in range(32)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    for limit in (34, 15):
        assert len(set(short_names(names, limit))) == len(names)


def test_numbers() -> None:
    assert quantity(0.0) == "0"
    assert quantity(None) == "–"
    assert measured(97.512, 0.831, 1) == "97.5 ± 0.8"
    assert duration(0.0421) == "42 ms"
    assert duration(119) == "119.0 s"
    assert duration(3599.7) == "60 min 0 s"


def test_plan_labels_are_unique_and_say_what_differs(profile, plans) -> None:
    uniform = uniform_plan(profile.inventory, "int4")
    by_hand = uniform_plan(profile.inventory, "int4", {"fc": "int8"})
    labels = plan_labels([plans[0], plans[0], uniform, by_hand])
    assert len(set(labels)) == 4
    assert labels[0].startswith(str(plans[0].evidence.request.budget))
    assert "one_layer_kl + milp" in labels[0]
    assert labels[2] == "uniform int4"
    assert labels[3] == f"{by_hand.average_bits:.2f} average bits"
