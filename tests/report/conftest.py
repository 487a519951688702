"""Made-up evidence with the look of a real one: damage falls fourfold a bit, first and last layers hurt most."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from browsing import Visit, open_page
from geoquant.evaluation import Mean
from geoquant.models import Inventory, take_inventory
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.report import Point
from geoquant.sensitivity import DamageTable, Profile

GRIDS = tuple(f"int{bits}" for bits in range(2, 9))
RESNET_NAMES = ("conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(3) for c in (1, 2)), "fc")


def make_inventory(names: Sequence[str]) -> Inventory:
    """List a net of small linear layers with any names."""
    net = nn.Module()
    for index, name in enumerate(names):
        module = net
        *parents, last = name.split(".")
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.add_module(last, nn.Linear(16 + 8 * (index % 3), 12))
    return take_inventory(net)


def make_profile(names: Sequence[str] = RESNET_NAMES, grids: Sequence[str] = GRIDS, seed: int = 0) -> Profile:
    """Make a profile of three predictors; the second only ranks, and the third has zeros."""
    inventory = make_inventory(names)
    rng = np.random.default_rng(seed)
    depth = np.linspace(-1, 1, len(names)) if len(names) > 1 else np.zeros(1)
    base = 0.02 * np.exp(2.0 * depth**2 + 0.8 * rng.standard_normal(len(names)))
    widths = np.array([float(grid[3:4]) if grid.startswith("int") else 1.6 for grid in grids])
    damage = base[:, None] * 4.0 ** (2 - widths) * np.exp(0.1 * rng.standard_normal((len(names), len(grids))))
    scores = 40 * damage * rng.lognormal(0, 0.4, (len(names), 1))
    trace = np.where(damage < 3e-5, 0.0, damage)

    def table(predictor: str, unit: str | None, values: np.ndarray, error: float, cost: float) -> DamageTable:
        rows = tuple(map(tuple, values.tolist()))
        errors = tuple(map(tuple, (error * values).tolist()))
        return DamageTable(predictor, unit, inventory.names, tuple(grids), rows, errors, cost, 512 if cost else 0)

    tables = (
        table("one_layer_kl", "nats per prediction", damage, 0.07, 81.3),
        table("weight_error", None, scores, 0.0, 0.0),
        table("hawq_v2", None, trace, 0.2, 242.0),
    )
    return Profile(inventory, tuple(grids), tables, "d" * 64, 0, (14.2, 0.4, 38.9))


def make_plans(profile: Profile, budgets: Sequence[float] = (2.5, 3.0, 4.0)) -> tuple[Plan, ...]:
    """Allocate at average bits above what scales alone take in layers this small."""
    least = uniform_plan(profile.inventory, profile.grids[0]).average_bits - 2
    return tuple(allocate(profile, Budget(average_bits=round(budget + least, 2))) for budget in budgets)


def make_point(method: str, label: str, size: int, accuracy: float, kl: float = 0.01, stderr: float = 0.003) -> Point:
    return Point(
        method,
        label,
        size / 10_000,
        size,
        Mean(accuracy, stderr, 8000),
        Mean(0.3 + kl, 0.01, 8000),
        Mean(kl, kl / 20, 8000),
    )


def make_points(advantage: float = 1.0) -> tuple[Point, ...]:
    """Make points of two guided methods and two uniform families; `advantage` bits ahead of uniform at equal bytes."""

    def curve(bits: float) -> tuple[float, float]:
        kl = 6.0 * 5.0 ** (1.4 - bits)
        return 0.917 - 0.817 * (1 - np.exp(-1.1 * kl)), kl

    points = []
    for method, ahead in (("geoquant", advantage), ("hawq_v2 + milp", 0.3 * advantage)):
        for bits in (2.5, 3.0, 3.5, 4.0, 5.0, 6.0):
            points.append(make_point(method, f"{bits:g} average bits", int(9000 + 33500 * bits), *curve(bits + ahead)))
    for suffix, ahead in (("", 0.0), (":affine", 0.35 if advantage else 0.0)):
        for bits in range(2, 9):
            size = int(9000 + 33500 * bits + (400 if suffix else 0))
            points.append(make_point("uniform", f"int{bits}{suffix}", size, *curve(bits + ahead)))
    return tuple(points)


def make_float_point() -> Point:
    return Point(
        "float", "float32", 32.0, 1_090_000, Mean(0.917, 0.003, 8000), Mean(0.3, 0.01, 8000), Mean(0.0, 0.0, 8000)
    )


@pytest.fixture(scope="session")
def profile() -> Profile:
    return make_profile()


@pytest.fixture(scope="session")
def plans(profile: Profile) -> tuple[Plan, ...]:
    return make_plans(profile)


@pytest.fixture(scope="session")
def points() -> tuple[Point, ...]:
    return make_points()


@pytest.fixture(scope="session")
def float_point() -> Point:
    return make_float_point()


@pytest.fixture(scope="session")
def profile_of() -> Callable[..., Profile]:
    return make_profile


@pytest.fixture(scope="session")
def plans_of() -> Callable[..., tuple[Plan, ...]]:
    return make_plans


@pytest.fixture(scope="session")
def point() -> Callable[..., Point]:
    return make_point


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Start the installed Chromium; tests that need it are skipped where there is none."""
    from playwright import sync_api

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium or Chrome is installed to look at the page with")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments, timeout=600_000)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def visit(browser) -> Iterator[Callable[..., Visit]]:
    """Open pages, each in a context of its own."""
    contexts = []

    def visit_page(path: Path, **options: Any) -> Visit:
        context = browser.new_context(**options)
        contexts.append(context)
        return open_page(context, path)

    yield visit_page
    for context in contexts:
        context.close()
