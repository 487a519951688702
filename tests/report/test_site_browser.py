"""The site works in a real browser: drawn without complaint, by keyboard, on a phone, in the dark, with contrast."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from browsing import DARK_INK, DESKTOP, PHONE, Visit, drawn, text_colours, until
from geoquant.report import Planned, write_site
from studies import CLAIMS, FIGURES, findings


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_site(folder, [findings()], [Planned("later", "To come", "And then?", "geoquant study run later")])
    return folder


@pytest.fixture(scope="module")
def index(visit, site: Path) -> Visit:
    return visit(site / "index.html", color_scheme="light", **DESKTOP)


@pytest.fixture(scope="module")
def study(visit, site: Path) -> Visit:
    return visit(site / "toy" / "index.html", color_scheme="light", **DESKTOP)


def contrasts(page) -> dict[str, float]:
    """Return the contrast of each verdict with the page, by the formula of WCAG 2."""
    rgb = page.evaluate(
        """[...document.querySelectorAll(".filters .badge")].map(badge => [badge.textContent.trim(),
            getComputedStyle(badge).color, getComputedStyle(document.body).backgroundColor])"""
    )

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    found = {}
    for name, ink, paper in rgb:
        low, high = sorted((luminance(ink), luminance(paper)))
        found[name] = (high + 0.05) / (low + 0.05)
    return found


def test_every_kind_of_figure_is_drawn_without_complaint_or_request(study: Visit, site: Path) -> None:
    counts = drawn(study.page)
    assert list(counts) == [f"figure-{figure.name}" for figure in FIGURES]
    assert all(count > 0 for count in counts.values()), counts
    assert study.complaints == []
    assert study.requests == [(site / "toy" / "index.html").as_uri()]


def test_a_phone_in_the_dark_gets_everything(visit, site: Path) -> None:
    for path in ("index.html", "toy/index.html"):
        seen = visit(site / path, color_scheme="dark", **PHONE)
        assert all(count > 0 for count in drawn(seen.page).values())
        assert text_colours(seen.page) <= {DARK_INK}
        seen.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
        # Every claim with all that belongs to it is in sight without scrolling sideways.
        cells = seen.page.locator(".claims tbody td, .claims tbody th")
        assert cells.count() == 5 * len(CLAIMS)
        boxes = cells.evaluate_all("all => all.map(each => each.getBoundingClientRect())")
        assert all(box["left"] >= 0 and box["right"] <= 390 and box["height"] > 0 for box in boxes)
        assert min(contrasts(seen.page).values()) >= 4.5
        assert seen.complaints == []


def test_one_comes_from_the_index_to_a_study_and_back_by_keyboard(visit, site: Path) -> None:
    seen = visit(site / "index.html", **DESKTOP)
    seen.page.locator(".studies a").first.focus()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector("h1:has-text('A study called toy')")
    seen.page.wait_for_selector("html[data-ready]")
    seen.page.get_by_role("link", name="All studies").focus()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector("h1:has-text('What came of it')")
    assert seen.complaints == []


def test_claims_can_be_chosen_by_verdict_with_the_keyboard(index: Visit) -> None:
    page = index.page
    assert min(contrasts(page).values()) >= 4.5
    box = page.get_by_role("checkbox", name="fails")
    box.focus()
    page.keyboard.press("Space")
    until(page, "document.querySelector('.filters [role=status]').textContent === '3 of 4 shown'")
    assert not page.get_by_role("row", name="Saves").is_visible()
    page.keyboard.press("Space")
    until(page, "document.querySelector('.filters [role=status]').textContent === ''")
    assert page.get_by_role("row", name="Saves").is_visible()


def test_claims_sort_by_verdict_best_first(index: Visit) -> None:
    index.page.get_by_role("button", name="verdict").focus()
    index.page.keyboard.press("Enter")
    order = index.page.locator(".claims tbody tr").evaluate_all("rows => rows.map(row => row.dataset.verdict)")
    assert order == ["holds", "fails", "partly", "not measured"]


def test_a_series_of_bars_can_be_hidden(study: Visit) -> None:
    page = study.page
    bars = "document.querySelectorAll('#figure-needed .barlayer .trace').length"
    assert page.evaluate(bars) == 2
    box = page.locator("#figure-needed").get_by_label("MNIST")
    box.focus()
    page.keyboard.press("Space")
    until(page, f"{bars} === 1")
    page.keyboard.press("Space")
    until(page, f"{bars} === 2")
    assert page.locator("#figure-needed .legend svg path").count() == 2


def test_whoever_cannot_see_hears_what_everything_is(study: Visit) -> None:
    page = study.page
    heard = page.locator(".plot").evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    assert heard == [figure.alt for figure in FIGURES]
    nameless = page.evaluate(
        """[...document.querySelectorAll("a, button, select, input, summary")]
            .filter(each => !(each.ariaLabel || each.textContent.trim() || each.labels?.length)).length"""
    )
    assert nameless == 0
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
