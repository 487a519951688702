"""Laws of every exporter; a newcomer adds itself to the registry and inherits them.

Cases are nets with a plan, small enough for seconds. An exporter that does not take a layer of a case refuses it with
an `ExportError`, which has laws of its own: one sentence, and nothing left on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.errors import ExportError, FileFormatError
from geoquant.export import Exporter, Packed
from geoquant.models import inference, predict
from geoquant.plan import Plan
from geoquant.quantize import quantize


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


_WATCHED: list[bool] = []


def _audit(event: str, _: tuple[object, ...]) -> None:
    if _WATCHED and event == "pickle.find_class":
        raise AssertionError("a pickle was loaded, which may run code")


sys.addaudithook(_audit)  # hooks cannot be taken away again, so this one sleeps between tests


@contextmanager
def no_unpickling() -> Iterator[None]:
    _WATCHED.append(True)
    try:
        yield
    finally:
        _WATCHED.pop()


def is_sentence(error: Exception) -> bool:
    text = str(error)
    return 20 < len(text) < 600 and "\n" not in text


def tensors_bytes(net: nn.Module) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in net.state_dict().values())


def check_exporter(
    exporter: Exporter,
    make: Callable[[], nn.Module],
    plan: Plan,
    batch: Any,
    folder: Path,
    **options: Any,
) -> None:
    """Hold `exporter` to all laws on one quantized net."""
    net = quantize(make(), plan, [batch])
    with inference(net):
        expected = predict(net, batch)
    options |= {"example": batch} if "example" in exporter.options else {}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    target = folder / f"out{exporter.suffix}"
    try:
        foretold = exporter.layers(plan, **options)
    except ExportError as refusal:
        _check_refusal(exporter, net, plan, target, str(refusal), options)
        return
    written = exporter.write(net, plan, target, **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items()), "the model was changed"
    with inference(net):
        assert torch.equal(predict(net, batch), expected), "the model computes otherwise after its export"
    _check_contents(exporter, net, plan, target, written, foretold)
    _check_logits(exporter, make, plan, target, batch, expected)
    _check_damage(exporter, make, target, batch, expected)


def _check_refusal(
    exporter: Exporter, net: nn.Module, plan: Plan, target: Path, said: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ExportError) as caught:
        exporter.write(net, plan, target, **options)
    assert is_sentence(caught.value)
    assert str(caught.value) == said, "`layers` and `write` refuse for different reasons"
    assert not target.exists()
    assert not target.parent.exists() or not files_of(target.parent), "a refused export left files"


def _check_contents(exporter: Exporter, net: nn.Module, plan: Plan, target: Path, written: Any, foretold: Any) -> None:
    found = exporter.contents(target)
    assert exporter.recognizes(target)
    assert found == written
    by_name = {layer.name: layer for layer in found.layers}
    assert len(by_name) == len(found.layers)
    assert {layer.name: (layer.stored, layer.bytes) for layer in foretold} == {
        name: (layer.stored, layer.bytes) for name, layer in by_name.items()
    }
    files = files_of(target) if target.is_dir() else [target]
    assert not [path for path in files if path.suffix in (".py", ".pyc", ".so", ".pkl", ".pt", ".bin")]
    assert found.format == exporter.name
    assert found.bytes == sum(path.stat().st_size for path in files)
    assert found.bytes >= sum(layer.bytes for layer in found.layers) + found.others
    # Activations bring scales, shapes bring a few constants.
    assert found.others <= tensors_bytes(net) + 16 * len(plan.activations) + 64
    for layer, site, grid in zip(foretold, plan.inventory.sites, plan.grids, strict=True):
        assert layer.grid == str(grid)
        if layer.bytes > Packed().layers(plan)[plan.inventory.sites.index(site)].bytes:
            assert layer.reason, f"{site.name} takes more than planned, without a reason"


def _check_logits(
    exporter: Exporter,
    make: Callable[[], nn.Module],
    plan: Plan,
    target: Path,
    batch: Any,
    expected: Tensor,
) -> None:
    fresh = make()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)  # weights of the given model must not matter
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with no_unpickling():
        run = exporter.load(target, fresh)
        found = run(batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())
    assert found.shape == expected.shape
    difference = float((found.double() - expected.double()).abs().max())
    assert difference <= exporter.tolerance(plan) * float(expected.abs().max()), f"logits differ by {difference:.3g}"


def check_deterministic(
    exporter: Exporter, make: Callable[[], nn.Module], plan: Plan, batch: Any, folder: Path, **options: Any
) -> None:
    """Hold `exporter` to writing the same bytes twice."""
    net = quantize(make(), plan, [batch])
    first, second = (folder / f"{name}{exporter.suffix}" for name in ("first", "second"))
    for target in (first, second):
        exporter.write(net, plan, target, **options)
    pairs = zip(files_of(first), files_of(second), strict=True) if first.is_dir() else [(first, second)]
    assert all(one.read_bytes() == other.read_bytes() for one, other in pairs), "two exports differ"


def _check_damage(
    exporter: Exporter, make: Callable[[], nn.Module], target: Path, batch: Any, expected: Tensor
) -> None:
    """Cut the largest file short: a sentence, not a wrong answer."""
    largest = max(files_of(target) if target.is_dir() else [target], key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    for share in (0.0, 0.5, 0.98):
        largest.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(gq.GeoquantError) as caught:
            exporter.contents(target)
        assert isinstance(caught.value, FileFormatError)
        assert is_sentence(caught.value)
        with pytest.raises(FileFormatError):
            exporter.load(target, make())(batch)
    largest.write_bytes(whole)
