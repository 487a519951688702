"""The page works in a real browser: plots are drawn, controls do what they say, phones and dark rooms are served."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browsing import DARK_INK, DESKTOP, LIGHT_INK, PHONE, Visit, drawn, text_colours, until
from geoquant.recovery import Trace, TracePoint
from geoquant.report import write_report
from geoquant.report.labels import shorten

# Characters that mean something to HTML, to plotly and to JavaScript; a dot would start a submodule.
HOSTILE = "<img src=x onerror=alert()>&\"'</script>%{x}"


@pytest.fixture(scope="module")
def full(tmp_path_factory, profile, plans, points, float_point) -> Path:
    target = tmp_path_factory.mktemp("report") / "page.html"
    return write_report(target, "Full", profile=profile, plans=plans, points=points, float_point=float_point)


@pytest.fixture(scope="module")
def desk(visit, full: Path) -> Visit:
    """One page that several tests share; each leaves it usable for the next."""
    return visit(full, color_scheme="light", **DESKTOP)


def test_every_plot_is_drawn_without_complaint_or_request(desk: Visit, full: Path) -> None:
    counts = drawn(desk.page)
    assert list(counts) == ["pareto", "bits-map", "damage-map", "damage-curves", "cost-plot"]
    assert all(count > 0 for count in counts.values()), counts
    assert desk.complaints == []
    assert desk.requests == [full.as_uri()]


def test_the_course_of_a_recovery_is_drawn_and_so_is_what_follows(visit, profile, plans, tmp_path: Path) -> None:
    looks = (TracePoint(step, 0.1, 0.9 / (1 + step), -0.5, -0.2, 0.1, 0.4, 0.0, 0.0, 0.5) for step in (0, 5, 10))
    target = write_report(tmp_path / "page.html", "Trained", profile=profile, plans=plans, trace=Trace(tuple(looks)))
    seen = visit(target, **DESKTOP)
    counts = drawn(seen.page)
    assert "recovery-trace" in counts
    assert "cost-plot" in counts
    assert all(count > 0 for count in counts.values()), counts
    assert seen.complaints == []


def test_a_phone_in_the_dark_gets_every_plot_in_light_ink(visit, full: Path) -> None:
    seen = visit(full, color_scheme="dark", **PHONE)
    assert all(count > 0 for count in drawn(seen.page).values())
    assert text_colours(seen.page) == {DARK_INK}
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert seen.complaints == []


def test_a_change_of_scheme_reaches_the_plots(desk: Visit) -> None:
    assert text_colours(desk.page) == {LIGHT_INK}
    desk.page.emulate_media(color_scheme="dark")
    fill = "getComputedStyle(document.querySelector('#cost-plot .xtick text')).fill"
    until(desk.page, f"{fill} === '{DARK_INK}'")
    assert text_colours(desk.page) == {DARK_INK}
    desk.page.emulate_media(color_scheme="light")
    until(desk.page, f"{fill} === '{LIGHT_INK}'")


def test_two_hundred_long_names_fit_a_phone(visit, profile_of, plans_of, tmp_path: Path) -> None:
    profile = profile_of([f"model.layers.{i}.self_attention.query_key_value" for i in range(200)])
    target = write_report(tmp_path / "page.html", "Tall", profile=profile, plans=plans_of(profile))
    seen = visit(target, **PHONE)
    assert seen.complaints == []
    boxes = seen.page.evaluate(
        """[...document.querySelectorAll("#damage-map .ytick text")]
            .map(text => text.getBoundingClientRect()).map(box => [box.top, box.bottom, box.left])"""
    )
    assert len(boxes) == 200
    assert all(above[1] <= below[0] + 1 for above, below in pairwise(sorted(boxes)))
    assert min(left for _, _, left in boxes) >= 0
    seen.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_one_layer_with_an_endless_name_fits_a_phone(visit, profile_of, plans_of, tmp_path: Path) -> None:
    profile = profile_of(["encoder." * 12 + "projection"])
    target = write_report(tmp_path / "page.html", "One", profile=profile, plans=plans_of(profile))
    seen = visit(target, **PHONE)
    assert seen.complaints == []
    assert all(count > 0 for count in drawn(seen.page).values())
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_links_lead_to_sections_that_can_be_seen(desk: Visit) -> None:
    links = desk.page.locator("nav a")
    assert links.count() == 5
    for index in range(links.count()):
        links.nth(index).click()
        target = desk.page.locator(links.nth(index).get_attribute("href"))
        assert target.locator("h2").is_visible()
        assert target.evaluate("each => each.getBoundingClientRect().top < innerHeight")


def test_controls_work_from_the_keyboard(desk: Visit, profile) -> None:
    page = desk.page
    page.get_by_label("Measure").focus()
    page.keyboard.press("ArrowDown")
    until(page, "document.querySelector('#pareto .ytitle').textContent.startsWith('KL')")
    lines = page.locator("#pareto .scatterlayer .trace")
    before = lines.count()
    box = page.get_by_label("hawq_v2 + milp", exact=True)
    box.focus()
    page.keyboard.press("Space")
    until(page, f"document.querySelectorAll('#pareto .scatterlayer .trace').length === {before - 1}")
    page.keyboard.press("Space")
    until(page, f"document.querySelectorAll('#pareto .scatterlayer .trace').length === {before}")
    assert desk.complaints == []


def test_a_picture_can_be_saved_and_nothing_offers_to_upload_it(desk: Visit) -> None:
    with desk.page.expect_download() as download:
        desk.page.get_by_role("button", name="Save “Accuracy against bytes” as PNG").click()
    picture = Image.open(download.value.path())
    assert picture.format == "PNG"
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    assert desk.page.locator(".modebar-btn").count() == 0
    assert desk.complaints == []


def test_zooming_can_be_undone_with_a_button(desk: Visit) -> None:
    reset = desk.page.locator("#damage-curves").get_by_role("button", name="Reset zoom")
    assert reset.is_hidden()
    plot = desk.page.locator("#damage-curves .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    desk.page.mouse.move(box["x"] + 300, box["y"] + 100)
    desk.page.mouse.down()
    desk.page.mouse.move(box["x"] + 500, box["y"] + 250, steps=4)
    desk.page.mouse.up()
    reset.wait_for(state="visible")
    reset.click()
    reset.wait_for(state="hidden")


def test_one_layer_can_be_picked_out(desk: Visit, profile) -> None:
    page = desk.page
    page.locator("#damage-curves select[data-control=layer]").select_option("fc")
    faint = "[...document.querySelectorAll('#damage-curves .scatterlayer .trace')].filter(x => x.style.opacity < .5)"
    until(page, f"{faint}.length === {len(profile.inventory.names) - 1}")


def test_the_map_follows_the_choice_of_predictor(desk: Visit) -> None:
    desk.page.locator("#damage-map select").select_option(label="weight_error")
    title = desk.page.locator("#damage-map .gtitle")
    assert title.text_content() == "weight_error (score, ranks only)"


def test_tables_sort_by_value_and_say_so(desk: Visit, plans) -> None:
    table = desk.page.locator("details.plan[open] table")
    header = table.get_by_role("button", name="damage (nats per prediction)")
    header.focus()
    damages = dict(zip(plans[0].inventory.names, plans[0].damages, strict=True))
    for order, turned in (("ascending", False), ("descending", True)):
        desk.page.keyboard.press("Enter")
        assert header.locator("..").get_attribute("aria-sort") == order
        names = table.locator("tbody th").all_text_contents()
        assert names == sorted(damages, key=lambda name: damages[name], reverse=turned)


def test_plots_follow_the_width_of_the_window(desk: Visit) -> None:
    width = "document.querySelector('#pareto .main-svg').getBoundingClientRect().width"
    wide = desk.page.evaluate(width)
    desk.page.set_viewport_size({"width": 600, "height": 900})
    until(desk.page, f"{width} < {wide} - 100")
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= 600


def test_the_skip_link_is_the_first_stop_and_focus_is_visible(visit, profile_of, tmp_path: Path) -> None:
    page = visit(write_report(tmp_path / "page.html", "Small", profile=profile_of(["fc"])), **DESKTOP).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_hostile_names_are_shown_letter_by_letter(visit, profile_of, point, tmp_path: Path) -> None:
    profile = profile_of([HOSTILE, "fc"])
    points = [point(HOSTILE, HOSTILE, 1000, 0.5), point("uniform", "int4", 1000, 0.4)]
    path = write_report(tmp_path / "page.html", HOSTILE, profile=profile, points=points)
    seen = visit(path, **DESKTOP)
    assert seen.complaints == []
    assert seen.requests == [path.as_uri()]
    assert seen.page.title() == HOSTILE
    assert seen.page.locator("img").count() == 0
    assert HOSTILE in seen.page.locator("#pareto .legend").text_content()
    ticks = seen.page.locator("#damage-map .ytick text").all_text_contents()
    assert ticks[0] == shorten(HOSTILE, 34)
    assert seen.page.locator("#damage-curves option", has_text="onerror").text_content() == HOSTILE
