"""Artifacts with activation grids: size as planned, logits bit-identical, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import geoquant as gq
from geoquant.errors import FileFormatError, WeightsError
from geoquant.export import packed, read_artifact
from geoquant.models import inference
from geoquant.plan import uniform_plan
from geoquant.quantize import quantized_state
from nets import small_batches, small_net

ACTIVATIONS = [
    "int8:affine",
    "int8:affine:minmax",
    "int4:percentile99.9",
    "int8:entropy",
    "fp8_e4m3",
    "int4:affine:token",
    "int8:dynamic",
    {"re:.*": "int8:affine", "head": "int4:token"},
    {"block": "int16:affine"},
]


def saved(tmp_path: Path, activations: object) -> tuple[nn.Module, Path, int]:
    net = small_net()
    plan = uniform_plan(net, "int4", activations=activations)
    gq.quantize_(net, plan, small_batches())
    return net, gq.save(net, plan, tmp_path / "out"), plan.bytes


@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
def test_size_as_predicted_and_logits_bit_identical(tmp_path: Path, activations: object) -> None:
    net, path, size = saved(tmp_path, activations)
    assert path.stat().st_size == size
    fresh = gq.load(path, small_net(seed=7))
    assert quantized_state(fresh).scales == quantized_state(net).scales
    batch = small_batches()[0][0]
    with inference(net), inference(fresh):
        assert torch.equal(net(batch), fresh(batch))
    again = gq.save(fresh, quantized_state(fresh).plan, tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()


def test_static_scales_are_counted(tmp_path: Path) -> None:
    net = small_net()
    plain, static, dynamic = (
        uniform_plan(net, "int4", activations=each).bytes for each in (None, "int8", "int8:token")
    )
    assert static > dynamic > plain
    assert read_artifact(saved(tmp_path, "int8")[1]).tensors["geoquant:activation.scales"].shape == (3,)


def test_files_without_activations_are_those_of_version_one(tmp_path: Path) -> None:
    import json
    import struct

    for activations, version in ((None, 1), ("int8", 2)):
        _, path, _ = saved(tmp_path, activations)
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        assert json.loads(header["__metadata__"]["geoquant"])["version"] == version


def test_a_missing_scale_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path, _ = saved(tmp_path, "int8")
    whole = read_artifact(path)
    whole.tensors.pop("geoquant:activation.scales")
    monkeypatch.setattr(packed, "read_artifact", lambda _: whole)
    with pytest.raises(WeightsError, match=r"activation\.scales"):
        gq.load(path, small_net())


def test_a_changed_grid_is_refused(tmp_path: Path) -> None:
    _, path, _ = saved(tmp_path, "int8:affine")
    path.write_bytes(path.read_bytes().replace(b"int8:affine", b"int4:affine", 1))
    with pytest.raises(FileFormatError, match="checksum"):
        read_artifact(path)
