"""Packed weights in memory: the same logits in the artifact's bytes, files mapped, and old versions readable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import geoquant as gq
from geoquant.errors import FileFormatError, PlanError, WeightsError
from geoquant.export import read_artifact
from geoquant.models import inference
from geoquant.plan import METADATA_KEY, entries, uniform_plan
from geoquant.quantize import quantize
from nets import small_batches, small_net

FIXTURES = Path(__file__).parent / "fixtures"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.up(x.transpose(1, 2)).transpose(1, 2))


def held(model: nn.Module) -> int:
    """Bytes of all parameters and buffers that inference reads, shared ones once."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.numel() and not name.endswith("num_batches_tracked")
    }
    return sum(tensors.values())


@pytest.mark.parametrize("grid", ["int3", "ternary", "int5:affine:group4", "fp8_e4m3", "binary", "fp16"])
def test_same_logits_in_the_bytes_of_the_plan(tmp_path: Path, grid: str) -> None:
    net = Tied().eval()
    plan = uniform_plan(net, grid)
    # torch multiplies a transposed input in another order where the weight requires a gradient; packed ones never do.
    net = quantize(net, plan).requires_grad_(False)
    path = gq.save(net, plan, tmp_path)
    fresh = Tied().eval()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    packed = gq.load(path, fresh, packed=True)
    tokens = torch.randint(0, 20, (2, 5))
    with inference(net), inference(packed):
        assert torch.equal(packed(tokens), net(tokens))
        assert torch.equal(packed(tokens), net(tokens))
    assert held(packed) == sum(entry.bytes for entry in entries(plan.inventory, plan.grids))
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())


def test_activations_are_rounded_in_a_packed_model_too(tmp_path: Path) -> None:
    net = small_net()
    plan = uniform_plan(net, "int4", activations={"re:.*": "int4:affine", "head": "int4:token"})
    net = quantize(net, plan, small_batches())
    packed = gq.load(gq.save(net, plan, tmp_path), small_net(seed=8), packed=True)
    batch = small_batches()[0][0]
    with inference(net), inference(packed):
        assert torch.equal(packed(batch), net(batch))
    with pytest.raises(PlanError, match="not quantized"):
        gq.save(packed, plan, tmp_path / "again")


def test_weights_are_mapped_not_read(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(512, 512, bias=False))
    plan = uniform_plan(net, "int4")
    path = gq.save(quantize(net, plan), plan, tmp_path)
    packed = gq.load(path, net, packed=True)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) in maps.read_text()
    assert sum(parameter.numel() for parameter in packed.parameters()) == 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_artifacts_of_old_versions_give_the_logits_they_gave(version: int, packed: bool) -> None:
    folder = FIXTURES / f"version{version}"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY])["version"] == version
    model = gq.load(folder, small_net(seed=5), packed=packed)
    with inference(model):
        found = model(small_batches()[0][0])[:4]
    assert torch.allclose(found, torch.tensor(json.loads((folder / "logits.json").read_text())), atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_a_missing_tensor_is_named(tmp_path: Path, packed: bool) -> None:
    from geoquant.export import checksum

    path = gq.save(net := quantize(small_net(), plan := uniform_plan(small_net(), "int4")), plan, tmp_path)
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    del tensors["block.weight.codes"]
    described.pop("sha256")
    described["sha256"] = checksum(described, tensors)
    save_file(tensors, path, {METADATA_KEY: json.dumps(described)})
    with pytest.raises(WeightsError, match=r"'block\.weight\.codes' is missing in the file"):
        gq.load(path, net if packed else small_net(), packed=packed)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileFormatError, match="not a whole"):
        read_artifact(path)
