"""The page holds the numbers of its inputs, escapes what comes from outside, and is written whole or not at all."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

import geoquant as gq
from geoquant.errors import OutputError, PlanError
from geoquant.plan import uniform_plan
from geoquant.report import render, write_report
from nets import small_batches, small_net

HOSTILE = "<img src=x onerror=document&period;title='owned'>&\"</script><script>"


class Reader(HTMLParser):
    """Collect tables by caption, ids, local links, and every address that a page could fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self._into: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.anchors.append(values.get("href", ""))
        self.fetched += [values[name] for name in ("src", "srcset", "data", "poster") if name in values]
        if tag == "link":
            self.fetched.append(values["href"])
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        self._into = tag if tag in ("td", "th", "caption") else self._into

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.tables[self._caption] = self._rows
        if tag in ("td", "th", "caption"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into == "caption":
            self._caption += data
        elif self._into:
            self._rows[-1][-1] += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


@pytest.fixture(scope="module")
def html(profile, plans, points, float_point) -> str:
    return render(
        "ResNet-20",
        profile=profile,
        plans=plans,
        points=points,
        float_point=float_point,
        notes={"data": "digits"},
        seconds={"profile": 53.5, "allocate": 0.2},
        command="geoquant demo",
    )


def test_the_plan_table_has_the_numbers_of_the_plan(html: str, plans) -> None:
    tables = read(html).tables
    for plan in plans:
        rows = tables[f"Layers of the plan “{plan.evidence.request.budget}”"]
        assert rows[0] == ["layer", "weights", "grid", "bits", "bytes", "damage (nats per prediction)", "why"]
        for row, site, name, cost, damage, reason in zip(
            rows[1:], plan.inventory.sites, plan.names, plan.costs, plan.damages, plan.evidence.reasons, strict=True
        ):
            bits = f"{cost.total_bits / site.weights:.2f}"
            assert row == [site.name, f"{site.weights:,}", name, bits, f"{cost.bytes:,}", f"{damage:.3g}", reason]


def test_chosen_activations_stand_beside_the_weights() -> None:
    batches, inputs = small_batches(), ["int2:affine", "int4:affine:token"]
    options = {"grids": ["int4", "int8"], "predictors": ["one_layer_kl"], "activations": inputs}
    profile = gq.profile(small_net(), batches, activation_sites=["re:.*"], **options)
    plan = gq.allocate(profile, gq.Budget(average_activation_bits=3, average_bits=7))
    plans = [plan, gq.allocate(profile, gq.Budget(average_bits=7))]
    tables = read(render("both", profile=profile, plans=plans)).tables
    rows = tables[f"Layers of the plan “{plan.evidence.request.budget}”"]
    assert rows[0][6:8] == ["input", "its damage (nats per prediction)"]
    assert [row[0] for row in rows[1:]] == ["stem", "block", "head", "add:0", "add:1"]
    assert [row[6] for row in rows[1:]] == [grid for _, grid in plan.activations]
    assert [row[7] for row in rows[1:]] == [f"{damage:.3g}" for damage in plan.input_damages.values()]
    overview = tables["Size and predicted damage"]
    assert overview[0][2] == "activation bits"
    assert [row[2] for row in overview[1:]] == [f"{plan.average_activation_bits:.4f}", "float"]
    measured = tables["one_input_kl, inputs: nats per prediction"]
    assert measured[0] == ["input", *inputs]
    assert [row[0] for row in measured[1:]] == list(profile.activations.sites)


def test_the_overview_has_sizes_and_proofs(html: str, plans, float_point) -> None:
    rows = read(html).tables["Size and predicted damage"][1:]
    for row, plan in zip(rows, plans, strict=True):
        assert row[1] == f"{plan.average_bits:.4f}"
        assert row[2] == f"{plan.bytes:,}"
        assert row[3] == f"{100 * plan.bytes / float_point.bytes:.1f} %"
        assert row[6] == f"{plan.evidence.optimality.objective:.3g}"


def test_the_results_have_every_point(html: str, points) -> None:
    rows = read(html).tables["Evaluated plans"][1:]
    assert rows[0][:2] == ["float", "float32"]
    assert len(rows) == len(points) + 1
    first = points[0]
    assert rows[1][3:5] == [f"{first.bytes:,}", f"{100 * first.accuracy.value:.2f} ± 0.30 %"]


def test_the_verdict_stands_at_the_top(html: str) -> None:
    assert "geoquant&#39;s plan keeps" in html[: html.index("<nav")]


def test_provenance_and_steps(html: str, profile) -> None:
    for text in (profile.inventory.fingerprint, profile.data, "geoquant demo", "digits", "2.13"):
        assert text in html
    assert read(html).tables["Wall time of each step"][-1] == ["together", "53.7 s"]


def test_local_links_resolve_and_ids_are_unique(html: str) -> None:
    reader = read(html)
    assert len(set(reader.ids)) == len(reader.ids)
    assert reader.anchors
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.anchors)


def test_nothing_is_fetched_from_elsewhere(html: str) -> None:
    reader = read(html)
    assert all(address.startswith("data:") for address in reader.fetched)
    assert html.count("plotly.js v") == 1


def test_headings_descend_without_gaps(html: str) -> None:
    levels = [int(tag[1]) for tag in read(html).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_every_figure_has_a_text_alternative_and_a_table(html: str) -> None:
    figures = re.findall(r"<figure id=.*?</figure>", html, re.S)
    assert len(figures) == 5
    for figure in figures:
        alternative = re.search(r'role="img" aria-label="([^"]*)"', figure)
        assert alternative is not None
        assert len(alternative[1]) > 40
        assert "<table" in figure


def test_same_input_same_bytes(html: str, profile, plans, points, float_point) -> None:
    again = render(
        "ResNet-20",
        profile=profile,
        plans=plans,
        points=points,
        float_point=float_point,
        notes={"data": "digits"},
        seconds={"profile": 53.5, "allocate": 0.2},
        command="geoquant demo",
    )
    assert again == html


def test_everything_from_outside_is_escaped(profile_of, point) -> None:
    profile = profile_of([HOSTILE, "fc"])
    plan = uniform_plan(profile.inventory, "int4")
    points = [point(HOSTILE, HOSTILE, 1000, 0.5)]
    html = render(HOSTILE, profile=profile, plans=[plan], points=points, notes={HOSTILE: HOSTILE}, command=HOSTILE)
    assert "<img" not in html.replace(_plotly(html), "")
    rows = read(html).tables["Layers of the plan “uniform int4”"]
    assert rows[1][0] == HOSTILE
    for block in re.findall(r'<script type="application/json" class="figure">(.*?)</script>', html, re.S):
        assert "<" not in block
        json.loads(block)


def _plotly(html: str) -> str:
    return max(re.findall(r"<script>.*?</script>", html, re.S), key=len)


def test_a_profile_alone_is_enough(profile) -> None:
    html = render("profile only", profile=profile)
    assert "Nothing is claimed about accuracy: no plan was evaluated on data." in html
    assert 'id="plans"' not in html
    assert 'id="results"' not in html
    assert 'href="#plans"' not in html


def test_plans_written_by_hand_have_no_reasons(profile) -> None:
    html = render("by hand", profile=profile, plans=[uniform_plan(profile.inventory, "int4", {"fc": "int8"})])
    assert "written by hand" in html


def test_a_plan_for_another_model_is_refused(profile, profile_of) -> None:
    with pytest.raises(PlanError, match="another model"):
        render("x", profile=profile, plans=[uniform_plan(profile_of(["other"]).inventory, "int4")])


def test_write_report_is_all_or_nothing(profile, tmp_path: Path) -> None:
    target = write_report(tmp_path / "deep" / "page.html", "t", profile=profile)
    assert target.read_text(encoding="utf-8") == render("t", profile=profile)
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(OutputError):
        write_report(blocker / "page.html", "t", profile=profile)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "file"]
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
