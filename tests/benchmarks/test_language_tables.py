"""The table of language models: everybody keeps the budget, texts stay apart, finished cells are not measured again."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from geoquant.data import TextSet
from language import TEXT, tiny, write_folder


@pytest.fixture(scope="module")
def tables():
    """A script of benchmarks, which is in no package."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("language_tables")
    finally:
        sys.path.remove(folder)


@pytest.mark.parametrize("budget", [8.0, 4.0, 3.0, 2.5, 2.0])
def test_uniform_candidates_use_most_of_the_budget_and_never_more(tables, budget):
    found = tables.uniform_candidates(tiny(), budget)
    assert found
    assert all(len(set(plan.names)) == 1 and plan.average_bits <= budget for plan in found)
    every = [tables.gq.uniform_plan(tiny(), grid).average_bits for grid in tables.UNIFORM]
    assert found[0].average_bits == max(bits for bits in every if bits <= budget)


def test_choices_and_calibration_share_no_text(tables):
    first, second = tables._apart(TextSet(tuple("abcdefghij"), "a toy"))
    assert first.documents + second.documents == tuple("abcdefghij")
    assert len(second.documents) == 2
    first, second = tables._apart(TextSet(("0123456789",), "a toy"))
    assert first.documents[0] + second.documents[0] == "0123456789"


def test_cells_are_measured_once_and_gathered_over_seeds(tables, tmp_path):
    counted = []

    def measure():
        counted.append(1)
        return {"loss": 1.0 + len(counted), "average_bits": 3.0, "bytes": 10}

    for _ in range(2):
        cells = tables.Cells(tmp_path / "cells.json")
        found = [cells.get({"contestant": "a", "budget": 3.0, "seed": seed}, measure) for seed in (0, 1)]
    assert len(counted) == 2
    (row,) = tables.rows(found)
    assert (row["loss"], row["seeds"]) == (2.5, 2)
    assert row["spread"] == pytest.approx(0.7071, abs=1e-4)
    assert "| a | 2.500 ± 0.707 |" in tables.table([row], 1.0)


def test_a_whole_table_on_a_tiny_model(tables, tmp_path):
    folder = write_folder(tmp_path / "net")
    for name, part in (("train", TEXT[:900]), ("test", TEXT[900:])):
        (tmp_path / f"{name}.txt").write_text(part, encoding="utf-8")
    texts = {"train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt")}
    settings = tables.Settings(folder, **texts, window=16, calibration=8, profile=8, choices=2, evaluated=2, steps=2)
    bench, cells = tables.Bench(settings), tables.Cells(tmp_path / "cells.json")
    names = ["uniform, GPTQ", "geoquant, GPTQ", "geoquant, GPTQ, codes learned"]
    found = tables.measure_cells(bench, cells, names, [3.0], 1)
    assert [cell["key"]["contestant"] for cell in found] == names
    assert all(cell["average_bits"] <= 3 and cell["loss"] > 0 for cell in found)
    assert all(cell["tokens"] == 2 * 15 for cell in found)
    assert tables.measure_cells(bench, cells, names, [4.0, 3.0], 2, finished=True) == found  # and nothing is measured
