"""Curvature map, spectrum and waterfall: the numbers are those that were measured, on the page and in the pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from geoquant.bounds import error_tiers
from geoquant.errors import DataError, PlanError
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.quantize import quantize
from geoquant.report import (
    Waterfall,
    curvature_map,
    curvature_png,
    measure_waterfall,
    render,
    spectrum_plot,
    spectrum_png,
    waterfall_plot,
    waterfall_png,
)
from geoquant.sensitivity import Profile, profile
from nets import small_batches, small_net


def rows_of(html: str, caption: str) -> list[list[str]]:
    """The cells of the table with this caption, without its headings."""
    body = re.search(rf"<caption>{re.escape(caption)}</caption>.*?<tbody>(.*?)</tbody>", html, re.S)
    assert body is not None, caption
    return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in body[1].split("<tr>")[1:]]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_net()


@pytest.fixture(scope="module")
def measured(net: nn.Module) -> Profile:
    return profile(net, small_batches(), predictors=["weight_error"], geometry=True)


@pytest.fixture(scope="module")
def chosen(measured: Profile) -> list[Plan]:
    return [allocate(measured, Budget(average_bits=bits)) for bits in (4.5, 6)]


@pytest.fixture(scope="module")
def falls(net: nn.Module, chosen: list[Plan]) -> list[Waterfall]:
    return [measure_waterfall(net, plan, small_batches()[0], f"plan {i}") for i, plan in enumerate(chosen)]


def test_the_waterfall_says_what_the_tiers_say(net: nn.Module, chosen: list[Plan], falls: list[Waterfall]) -> None:
    fall, x = falls[0], small_batches()[0][0][:4]
    tiers = error_tiers(net, quantize(net, chosen[0]), x, fall.radius)
    assert fall.tiers[1].values == pytest.approx(tiers.estimate.values.tolist(), rel=1e-9)
    assert fall.tiers[2].values == pytest.approx(tiers.observed.tolist(), rel=1e-6)
    assert list(fall.contributions) == ["stem", "block", "head"]
    for name, size in fall.contributions.items():
        assert size == pytest.approx(float(tiers.estimate.contributions[name].mean()), rel=1e-9)
    assert sum(fall.contributions.values()) - fall.cancelled == pytest.approx(float(tiers.estimate.values.mean()))
    assert fall.cancelled >= 0
    assert all(bound >= seen for bound, seen in zip(fall.tiers[0].values, fall.tiers[2].values, strict=True))
    assert fall.radius == pytest.approx(0.01 * float(x.double().square().mean().sqrt()))


def test_one_layer_makes_the_whole_error(net: nn.Module) -> None:
    plan = uniform_plan(net, "fp32", {"head": "int3"})
    fall = measure_waterfall(net, plan, small_batches()[0], "one", radius=0.0)
    assert list(fall.contributions) == ["head"]
    assert fall.cancelled == pytest.approx(0.0, abs=1e-12)
    # The output is linear in the last layer: first order is exact, and on single points the bound is attained.
    assert [fall.gap(tier) for tier in fall.tiers] == pytest.approx([1.0, 1.0, 1.0], rel=1e-6)


class Tokens(nn.Module):
    """Takes token ids by keyword and answers with a mapping, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.table(input_ids))}


def test_mappings_are_called_by_keyword_and_padding_is_refused() -> None:
    torch.manual_seed(0)
    net, tokens = Tokens().eval(), torch.randint(0, 7, (5, 6))
    plan = uniform_plan(net, "int4")
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    fall = measure_waterfall(net, plan, batch, "tokens")
    assert list(fall.contributions) == ["table", "head"]
    assert fall.radius == 0
    assert fall.tiers[2].mean
    batch["attention_mask"][0, -1] = 0
    with pytest.raises(DataError, match="no padding"):
        measure_waterfall(net, plan, batch, "padded")


def test_a_tier_that_is_not_to_be_had_says_why() -> None:
    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x).sort(-1).values

    torch.manual_seed(0)
    net = Sorting().eval()
    fall = measure_waterfall(net, uniform_plan(net, "int3"), torch.randn(4, 4), "sorting")
    assert fall.tiers[0].values == ()
    assert "sort" in fall.tiers[0].note
    assert fall.gap(fall.tiers[0]) is None
    assert fall.tiers[1].mean
    waterfall_plot([fall])


def test_bars_begin_where_the_last_one_ended(falls: list[Waterfall]) -> None:
    bars = waterfall_plot(falls).data[0]
    ends = [start + length for start, length in zip(bars.base, bars.x, strict=True)]
    assert bars.base[0] == 0
    assert list(bars.base[1:3]) == pytest.approx(ends[:2])
    assert ends[3] == pytest.approx(ends[2])  # what cancels leads back from the sum ...
    assert bars.base[3] == pytest.approx(ends[4])  # ... to the estimate
    assert bars.x[4] == pytest.approx(falls[0].tiers[1].mean)


def test_the_map_is_coloured_by_trace_per_weight_with_the_bits_on_it(measured: Profile, chosen: list[Plan]) -> None:
    assert measured.geometry is not None
    figure = curvature_map(measured.geometry, chosen)
    traces = [site.trace_per_weight.value for site in measured.geometry.sites]
    assert [10 ** row[0] for row in figure.data[0].z] == pytest.approx(traces)
    labels = list(figure.layout.xaxis.ticktext)
    for marks, plan in zip([trace for trace in figure.data if trace.type == "scatter"], chosen, strict=True):
        assert [float(labels[round(x)]) for x in marks.x] == [plan.grid(name).bits for name in plan.inventory.names]
    with pytest.raises(PlanError, match="same model"):
        curvature_map(measured.geometry, [uniform_plan(nn.Sequential(nn.Linear(2, 2)), "int4")])


def test_the_density_integrates_to_one(measured: Profile) -> None:
    assert measured.geometry is not None
    assert measured.geometry.spectrum is not None
    line = spectrum_plot(measured.geometry.spectrum).data[2]
    assert float(torch.trapezoid(torch.tensor(line.y), torch.tensor(line.x))) == pytest.approx(1.0, abs=0.02)


def test_the_page_has_the_sections_with_words_and_tables(
    measured: Profile, chosen: list[Plan], falls: list[Waterfall]
) -> None:
    html = render("all", profile=measured, plans=chosen, waterfalls=falls)
    figures = dict(re.findall(r'<figure id="([^"]*)"(.*?)</figure>', html, re.S))
    assert {"curvature-map", "spectrum", "waterfall"} <= set(figures)
    for key in ("curvature-map", "spectrum", "waterfall"):
        assert len(re.search(r'aria-label="([^"]*)" style', figures[key])[1]) > 40
        json.loads(re.search(r'class="figure">(.*?)</script>', figures[key], re.S)[1])
    assert 'href="#geometry"' in html
    assert 'href="#error"' in html
    rows = rows_of(html, "Three tiers of the error, plan 0")
    assert [row[0] for row in rows] == ["error_bound", "error_estimate", "error_observed"]
    rows = rows_of(html, "Geometry of each layer (cross_entropy, 48 samples)")
    assert [row[0] for row in rows] == ["stem", "block", "head"]
    assert rows[0][2] == f"{measured.geometry.site('stem').gauss_newton_trace.value:.3g}"
    assert rows_of(html, "The network as a whole")
    bare = render("bare", profile=measured.__class__(**{**vars(measured), "geometry": None}))
    assert 'id="geometry"' not in bare
    assert 'href="#geometry"' not in bare


def test_pictures_are_written(measured: Profile, chosen: list[Plan], falls: list[Waterfall], tmp_path: Path) -> None:
    assert measured.geometry is not None
    paths = [
        curvature_png(measured.geometry, tmp_path / "map.png", chosen),
        curvature_png(measured.geometry, tmp_path / "bare.png"),
        spectrum_png(measured.geometry.spectrum, tmp_path / "spectrum.png"),
        waterfall_png(falls[0], tmp_path / "waterfall.png"),
    ]
    assert all(Image.open(path).size[0] > 400 for path in paths)
