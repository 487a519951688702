"""The artifact: predicted size, bit-identical logits, and nothing trusted that was not checked."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

import geoquant as gq
from geoquant.errors import FileFormatError, OutputError, PlanError, WeightsError
from geoquant.export import packed, read_artifact
from geoquant.models import fold_batch_norm_, inference
from geoquant.models.zoo import digits_cnn, mlp3_mnist, resnet20_cifar10
from geoquant.plan import Plan, uniform_plan
from nets import small_batches, small_net

GRIDS = [
    *(f"int{bits}" for bits in (2, 3, 4, 5, 6, 7, 8, 16)),
    *(f"int{bits}:affine:group24" for bits in (2, 3, 5, 8)),
    "int3:narrow:tensor:maxabs",
    "int3:mse-signed",
    "binary",
    "ternary:group32",
    "fp8_e4m3",
    "fp8_e5m2:tensor",
    "fp4_e2m1",
    "fp4_e2m1:group16:e8m0",
    "bf16",
    "fp16",
    "fp32",
]


def saved(tmp_path: Path, grid: str, make: object = small_net) -> tuple[nn.Module, Plan, Path]:
    net = make()
    plan = uniform_plan(net, grid)
    gq.quantize_(net, plan)
    return net, plan, gq.save(net, plan, tmp_path / "out")


@pytest.mark.parametrize("grid", GRIDS)
def test_size_as_predicted_and_logits_bit_identical(tmp_path: Path, grid: str) -> None:
    net, plan, path = saved(tmp_path, grid)
    assert path.stat().st_size == plan.bytes
    fresh = gq.load(path, small_net(seed=7))
    batch = small_batches()[0][0]
    with inference(net), inference(fresh):
        assert torch.equal(net(batch), fresh(batch))


@pytest.mark.parametrize("make", [digits_cnn, mlp3_mnist, resnet20_cifar10])
@pytest.mark.parametrize("grid", ["int3", "ternary", "int5:affine:group16"])
def test_zoo_nets_round_trip(tmp_path: Path, make: object, grid: str) -> None:
    net, plan, path = saved(tmp_path, grid, make)
    assert path.stat().st_size == plan.bytes
    fresh = gq.load(path, make())
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_mixed_plan_and_tied_weights(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embedding(x)
            return self.head(self.attention(x, x, x)[0])

    net = Tied().eval()
    plan = uniform_plan(net, "int4", {"embedding": "int8:tensor", "re:.*in_proj": "binary"})
    tokens = torch.randint(0, 20, (2, 5))
    gq.quantize_(net, plan)
    assert net.head.weight is net.embedding.weight
    path = gq.save(net, plan, tmp_path)
    assert path.stat().st_size == plan.bytes
    fresh = gq.load(path, Tied().eval())
    assert torch.equal(net(tokens), fresh(tokens))


def test_folded_model_loads_into_an_unfolded_one(tmp_path: Path) -> None:
    net = small_net()
    fold_batch_norm_(net)
    plan = uniform_plan(net, "int6")
    gq.quantize_(net, plan)
    path = gq.save(net, plan, tmp_path)
    fresh = gq.load(path, small_net(seed=5))
    batch = small_batches()[0][0]
    assert path.stat().st_size == plan.bytes
    assert torch.equal(net(batch), fresh(batch))


def test_loading_leaves_the_given_model_alone(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path, "int4")
    mine = small_net(seed=9)
    before = mine.head.weight.clone()
    gq.load(path, mine)
    assert torch.equal(mine.head.weight, before)


def test_a_loaded_model_can_be_saved_again_with_the_same_bytes(tmp_path: Path) -> None:
    _, plan, path = saved(tmp_path, "int3:affine")
    again = gq.save(gq.load(path, small_net(seed=3)), plan, tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()


def test_changed_weights_and_float_models_are_not_saved(tmp_path: Path) -> None:
    net = small_net()
    plan = uniform_plan(net, "int4")
    with pytest.raises(PlanError, match="not quantized"):
        gq.save(net, plan, tmp_path / "out")
    gq.quantize_(net, plan)
    with torch.no_grad():
        net.head.weight[0, 0] += 1
    with pytest.raises(PlanError, match="'head' was changed"):
        gq.save(net, plan, tmp_path / "out")
    with pytest.raises(PlanError, match="quantized already"):
        gq.quantize_(net, plan)
    assert not (tmp_path / "out").exists()


def test_a_plan_for_another_model_is_refused_and_the_model_untouched() -> None:
    net = small_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(PlanError, match="another model"):
        gq.quantize_(net, uniform_plan(mlp3_mnist(), "int4"))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    _, _, path = saved(tmp_path, "int4")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(FileFormatError):
        read_artifact(path)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Data bytes by the checksum; header bytes by the checksum, the format, or the fit to the model."""
    _, _, path = saved(tmp_path, "int4")
    data = bytearray(path.read_bytes())
    header = struct.unpack("<Q", data[:8])[0]
    target = small_net()
    for place in [*range(8, 8 + header, 7), *range(8 + header, len(data), 29)]:
        if bytes(data[place : place + 1]) == b" ":
            continue  # padding after the header's JSON carries nothing
        flipped = data.copy()
        flipped[place] ^= 1
        path.write_bytes(bytes(flipped))
        with pytest.raises(gq.GeoquantError):
            gq.load(path, target)


def test_plain_safetensors_and_newer_versions_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(FileFormatError, match="plain weights"):
        read_artifact(tmp_path / "plain.safetensors")
    header = {"geoquant": json.dumps({"version": 99, "sha256": "", "sites": {}})}
    save_file({"a": torch.zeros(3)}, tmp_path / "new.safetensors", header)
    with pytest.raises(FileFormatError, match="version 99"):
        read_artifact(tmp_path / "new.safetensors")
    with pytest.raises(FileFormatError, match="not a whole"):
        read_artifact(tmp_path / "missing")


def test_artifact_of_another_architecture_is_refused(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path, "int4")
    with pytest.raises(WeightsError, match="does not fit"):
        gq.load(path, mlp3_mnist())


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net()
    plan = uniform_plan(net, "int4")
    gq.quantize_(net, plan)

    def full(tensors: object, target: Path, header: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packed, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        gq.save(net, plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_at_the_second_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net()
    plan = uniform_plan(net, "int4")
    gq.quantize_(net, plan)

    def full(self: Path, text: str, encoding: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        gq.save(net, plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
