"""Other tools on language models: bytes counted as geoquant's plan does, broken budgets refused; no tool is needed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from geoquant import evaluate
from geoquant.plan import uniform_plan
from language import tiny, token_batches, write_folder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> SimpleNamespace:
    """The scripts of benchmarks/peers, which are in no package."""
    folders = [str(BENCHMARKS / "peers"), str(BENCHMARKS)]
    sys.path[:0] = folders
    try:
        names = ("driving", "driving_language", "language_peers", "artifact_tables")
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        del sys.path[: len(folders)]


@pytest.fixture
def job(bench, tmp_path):
    folder = write_folder(tmp_path / "net")
    batches = token_batches(2, 2, 9)
    save_file({"tokens": torch.cat([each["input_ids"] for each in batches])}, str(tmp_path / "calibration.safetensors"))
    save_file(bench.language_peers.padded(_labelled(batches)), str(tmp_path / "test.safetensors"))
    places = {name: str(tmp_path / f"{name}.safetensors") for name in ("calibration", "test")}
    settings = {"budget": 4.5, "seed": 0, "threads": torch.get_num_threads(), "options": {}}
    return bench.driving_language.LanguageJob({"checkpoint": str(folder), **places, **settings}, tmp_path)


def _labelled(batches):
    return [{"input_ids": each["input_ids"], "labels": each["input_ids"].clone()} for each in batches]


def test_a_driver_counts_and_scores_as_geoquant_does(bench, job):
    layers = dict.fromkeys(job.shapes, bench.driving.LayerFormat(4))
    job.answer(job.model, layers)
    answer = json.loads((job.folder / "answer.json").read_text())
    plan = uniform_plan(job.model, "int4:narrow:maxabs")
    cell = bench.language_peers.judged(job.model, answer, 16.0)
    assert cell["average_bits"] == pytest.approx(plan.average_bits, abs=1e-12)
    assert cell["widths"] == dict.fromkeys(plan.inventory.names, 4)  # the tied head is one of them, once
    truth = evaluate(job.model, _labelled(token_batches(2, 2, 9))).cross_entropy.value
    assert cell["loss"] == pytest.approx(truth, rel=1e-5)
    assert "for a budget of" in bench.language_peers.judged(job.model, answer, plan.average_bits - 0.01)["reason"]
    forged = {**answer, "average_bits": answer["average_bits"] - 1}
    assert "the driver counts" in bench.language_peers.judged(job.model, forged, 16.0)["reason"]
    assert bench.language_peers.judged(job.model, {"reason": "why"}, 16.0) == {"reason": "why"}


def test_the_embedding_is_rounded_to_the_nearest_of_a_grid_per_row_and_stays_tied(bench, job):
    before = job.model.model.embed_tokens.weight.detach().clone()
    assert job.rounded_embedding() == {"model.embed_tokens": bench.driving.LayerFormat(4)}
    after = job.model.model.embed_tokens.weight
    assert job.model.lm_head.weight is after
    scale = (before.abs().amax(1, keepdim=True) / 7).half().float()
    codes = after / scale
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert codes.abs().max() < 7.01
    assert ((after - before).abs() <= 0.5 * scale * 1.01).all()


def test_a_tool_whose_least_breaks_the_budget_says_so_before_it_works(bench, job):
    embedding = {"model.embed_tokens": bench.driving.LayerFormat(4)}
    job.refuse_below(2, embedding)
    with pytest.raises(SystemExit, match=r"its least, 4 bits .* average bits"):
        job.refuse_below(4, embedding)


def test_windows_of_different_lengths_are_joined_without_counting_what_was_filled_in(bench):
    model = tiny()
    long, short = token_batches(1, 2, 9)[0]["input_ids"], token_batches(1, 1, 5)[0]["input_ids"]
    joined = bench.language_peers.padded(_labelled([{"input_ids": long}, {"input_ids": short}]))
    assert joined["tokens"].shape == joined["labels"].shape == (3, 9)
    assert (joined["labels"][2, 5:] == -100).all()
    with torch.no_grad():
        alone = F.cross_entropy(model(input_ids=short).logits[0, :-1], short[0, 1:])
        logits = model(input_ids=joined["tokens"]).logits[2, :-1]
    assert torch.isclose(F.cross_entropy(logits, joined["labels"][2, 1:], ignore_index=-100), alone, rtol=1e-4)


def test_a_missing_environment_is_a_reason(bench, tmp_path):
    batches = _labelled(token_batches(1, 1, 5))
    found = bench.language_peers.measure_peer("ModelOpt gradient", tmp_path, tmp_path, batches, batches, 4.0, 0, 1)
    assert "there is no environment 'modelopt'" in found["reason"]


def test_the_table_marks_the_best_and_lists_reasons(bench):
    def cell(name, budget, **more):
        return {"key": {"contestant": name, "budget": budget}, **more}

    rows = [
        {"contestant": "a", "budget": 4.0, "loss": 1.5, "spread": 0.01, "seeds": 3},
        {"contestant": "b", "budget": 4.0, "loss": 1.25, "spread": 0.0, "seeds": 1},
        {"contestant": "a", "budget": 3.0, "loss": 2.0, "spread": 0.0, "seeds": 1},
    ]
    cells = [cell("a", 4.0), cell("b", 4.0), cell("a", 3.0), cell("b", 3.0, reason="too few bits")]
    lines = bench.artifact_tables.language({"rows": rows, "cells": cells, "float": {"loss": 1.0}}).splitlines()
    assert "| a | 1.500 ± 0.010 | **2.000** |" in lines
    assert "| b | **1.250** | – |" in lines
    assert lines[-1] == "- b, 3: too few bits"
