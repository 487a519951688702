"""Every registered exporter keeps the laws on nets and plans of every kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from export.contract import check_deterministic, check_exporter, no_unpickling
from geoquant.errors import ExportError, PlanError, UnknownNameError
from geoquant.export import EXPORTERS, export_model, recognize
from geoquant.plan import uniform_plan
from llamas import tiny_llama, tokens
from nets import small_batches, small_net


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


def vectors() -> torch.Tensor:
    return torch.randn(6, 64, generator=torch.Generator().manual_seed(1))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any]]] = {
    "cnn-int8": (small_net, lambda: small_batches()[0], {"grid": "int8"}),
    "cnn-mixed": (
        small_net,
        lambda: small_batches()[0],
        {"grid": "int3", "exceptions": {"head": "int8:affine", "block": "ternary"}},
    ),
    "cnn-static": (small_net, lambda: small_batches()[0], {"grid": "int8", "activations": "int8:affine"}),
    "mlp-int4-groups": (mlp, vectors, {"grid": "int4:group32"}),
    "mlp-mixed": (mlp, vectors, {"grid": "int4", "exceptions": {"0": "int2:affine:group16", "4": "fp16"}}),
    "llama-mixed": (tiny_llama, tokens, {"grid": "int4:group32", "exceptions": {"re:.*mlp.*": "int8"}}),
    "llama-ternary": (
        partial(tiny_llama, hidden_size=256, intermediate_size=256),
        tokens,
        {"grid": "ternary", "exceptions": {"re:.*mlp.*": "int2:affine:group32", "model.embed_tokens": "fp16"}},
    ),
    "llama-tied": (partial(tiny_llama, tied=True), tokens, {"grid": "int3", "exceptions": {"re:.*down_proj": "int5"}}),
    "mlp-dynamic": (mlp, vectors, {"grid": "int8", "activations": "int8:affine:dynamic"}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", EXPORTERS.names())
def test_laws(name: str, case: str, tmp_path: Path) -> None:
    if name == "onnx" and case.startswith("llama") and case != "llama-tied":
        pytest.skip("tracing a language model takes long; llama-tied shows the same")
    make, batch, settings = CASES[case]
    plan = uniform_plan(make(), **settings)
    check_exporter(EXPORTERS[name], make, plan, batch(), tmp_path / "new")


@pytest.mark.parametrize("name", EXPORTERS.names())
def test_two_exports_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    make, batch = (tiny_llama, tokens()) if name == "gguf" else (mlp, vectors())
    check_deterministic(EXPORTERS[name], make, uniform_plan(make(), "int4:group32"), batch, tmp_path)


@pytest.mark.parametrize("name", EXPORTERS.names())
def test_a_float_model_and_another_models_plan_are_refused(name: str, tmp_path: Path) -> None:
    target = tmp_path / f"out{EXPORTERS[name].suffix}"
    with pytest.raises(PlanError):
        export_model(mlp(), uniform_plan(mlp(), "int8"), target, name)
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_options(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'packed'"):
        export_model(mlp(), uniform_plan(mlp(), "int8"), tmp_path, "paked")
    with pytest.raises(ExportError, match="no option 'opset'"):
        export_model(mlp(), uniform_plan(mlp(), "int8"), tmp_path, "packed", opset=3)


def test_a_file_of_no_format_is_not_recognized(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("three bits")
    assert recognize(tmp_path / "notes.txt") is None
    assert recognize(tmp_path / "missing") is None
    assert recognize(tmp_path) is None


def test_the_law_against_pickles_can_fail() -> None:
    import pickle

    text = pickle.dumps(Path("x"))
    with pytest.raises(AssertionError, match="may run code"), no_unpickling():
        pickle.loads(text)
    assert pickle.loads(text) == Path("x")
