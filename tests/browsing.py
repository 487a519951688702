"""Looking at pages in a real browser: what a visit hears of, what plots have drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1200, "height": 900}}
LIGHT_INK, DARK_INK = "rgb(27, 31, 36)", "rgb(231, 234, 238)"


@dataclass
class Visit:
    """An open page and what it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def open_page(context: Any, path: Path) -> Visit:
    """Open a local page, and wait until all of its plots are drawn."""
    page = context.new_page()
    result = Visit(page)
    page.on("console", lambda message: result.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: result.complaints.append(str(error)))
    page.on("request", lambda request: result.requests.append(request.url))
    page.set_default_timeout(600_000)  # a busy machine is slow, and slow is not wrong
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    return result


def until(page: Any, expression: str) -> None:
    """Wait for a condition; playwright's own way needs `eval`, which the page forbids."""
    for _ in range(6000):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def drawn(page: Any) -> dict[str, int]:
    """Count what each plot has drawn."""
    return dict(
        page.evaluate(
            """[...document.querySelectorAll(".plot")].map(plot => [
                plot.closest("figure").id,
                plot.querySelectorAll(".scatterlayer .trace path, .heatmaplayer image, .barlayer path").length,
            ])"""
        )
    )


def text_colours(page: Any) -> set[str]:
    """Return the colours of the tick labels of all plots."""
    ticks = "document.querySelectorAll('.plot .xtick text, .plot .ytick text')"
    return set(page.evaluate(f"[...{ticks}].map(text => getComputedStyle(text).fill)"))
