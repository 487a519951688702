"""The course of a recovery on the page: its figures, its words, and its place."""

from __future__ import annotations

from geoquant.recovery import Trace, TracePoint
from geoquant.report.page import render
from geoquant.report.recovery_panels import trace_panel, trace_table
from geoquant.sensitivity import Profile


def course() -> Trace:
    early = TracePoint(0, 0.1, 0.9, -0.5, -0.2, 0.05, 0.4, 0.0, 0.0, 0.0)
    return Trace((early, TracePoint(10, 0.2, 0.3, 0.25, 0.125, 0.3, 0.5, 0.04, 0.01, 0.35)))


def test_the_words_and_the_lines_are_the_traces() -> None:
    panel = trace_panel(course())
    assert panel.choices == ("Loss", "Inwards", "Distance", "Oscillation")
    for words in ("2 looks over 10 steps", "from 0.9 to 0.3", "from 0.1 to 0.2", "inwards at 1 of 2", "4.0 % of the"):
        assert words in panel.alternative
    lines = {trace.name: (list(trace.x), list(trace.y), trace.visible) for trace in panel.figure.data}
    assert lines["f(Q(w)), quantized"] == ([0, 10], [0.9, 0.3], True)
    assert lines["training step"] == ([10], [0.35], True)  # there is none before the first step
    assert lines["inwards"] == ([0, 10], [-0.2, 0.125], False)


def test_the_table_has_every_figure() -> None:
    table = trace_table(course())
    assert len(table.rows) == 2
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [cell.text for cell in table.rows[1][:4]] == ["10", "0.3", "0.2", "0.35"]
    assert table.rows[0][4].text == "−0.2"


def test_the_page_has_the_panel_only_where_there_is_a_trace(profile: Profile) -> None:
    page = render("a page", profile=profile, trace=course())
    assert 'href="#recovery"' in page
    assert 'id="recovery-trace"' in page
    for nothing in (None, Trace()):
        page = render("a page", profile=profile, trace=nothing)
        assert 'href="#recovery"' not in page
        assert 'id="recovery-trace"' not in page
