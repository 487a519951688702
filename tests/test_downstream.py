"""The way into lm-evaluation-harness: the model itself goes in, numbers come out, a missing package is one sentence."""

from __future__ import annotations

import sys
import types

import pytest
from torch import nn

from geoquant.downstream import evaluate_tasks
from geoquant.errors import DataError, MissingExtraError, ModelError


@pytest.fixture
def harness(monkeypatch):
    """A stand-in with the harness's two names, which notes what it is called with."""
    seen = {}

    class HFLM:
        def __init__(self, **given):
            self.given = given

    def simple_evaluate(model, tasks, limit):
        if "unknown" in tasks:
            raise KeyError("unknown")
        seen.update(model=model.given, tasks=tasks, limit=limit)
        return {"results": {tasks[0]: {"alias": tasks[0], "acc,none": 0.25, "acc_stderr,none": 0.1}}}

    top, models, inner = (types.ModuleType(n) for n in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface"))
    top.simple_evaluate, inner.HFLM = simple_evaluate, HFLM
    for module in (top, models, inner):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_the_model_goes_in_and_numbers_come_out(harness):
    model, tokenizer = nn.Linear(1, 1), object()
    found = evaluate_tasks(model, ["arc_easy"], tokenizer=tokenizer, limit=5)
    assert found == {"arc_easy": {"acc,none": 0.25, "acc_stderr,none": 0.1}}
    assert harness["model"]["pretrained"] is model
    assert harness["model"]["tokenizer"] is tokenizer
    assert (harness["tasks"], harness["limit"]) == (["arc_easy"], 5)


def test_what_cannot_run_is_named(harness):
    with pytest.raises(DataError, match="cannot run unknown"):
        evaluate_tasks(nn.Linear(1, 1), ["unknown"], tokenizer=object())
    with pytest.raises(ModelError, match="pass its tokenizer"):
        evaluate_tasks(nn.Linear(1, 1), ["arc_easy"])


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install geoquant\[lm-eval\]"):
        evaluate_tasks(nn.Linear(1, 1), ["arc_easy"])
