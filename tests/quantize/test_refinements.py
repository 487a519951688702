"""Learned codes lie on the grid, come nearer to the float model, and start from where rounding left them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.evaluation import divergence
from geoquant.grids import Grid
from geoquant.models import find_sites, inference
from geoquant.plan import uniform_plan
from geoquant.quantize import REFINEMENTS, BlockTuning, NetworkTuning, find_blocks, quantize, quantized_state
from geoquant.quantize.learning import LearnedMatrix
from geoquant.rounding import ROUNDINGS, RoundingContext
from nets import SmallNet, small_batches, small_net

GRIDS = ["int2", "int3:mse-signed", "int4:affine:group8", "int3:narrow:tensor", "binary", "ternary", "fp4_e2m1"]
GRIDS += ["fp4_e2m1:group16:e8m0", "fp8_e4m3", "int16"]
QUICK = {"blocks": BlockTuning(steps=40, batch=16), "network": NetworkTuning(steps=100)}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_learning_starts_at_the_given_codes(name: str, rounding: str) -> None:
    grid, matrix = Grid.parse(name), torch.randn(6, 40)
    start = ROUNDINGS[rounding](matrix, grid, RoundingContext(seed=1))
    learned = LearnedMatrix(start, matrix)
    torch.testing.assert_close(learned(), start.dequantize())
    end = learned.finish()
    assert torch.equal(end.codes, start.codes)
    torch.testing.assert_close(end.scales.scale, start.scales.scale)


@pytest.mark.parametrize("name", ["int3:mse-signed", "binary", "int4:affine:group8"])
def test_gradients_of_places_and_scales_are_those_of_the_straight_through_estimate(name: str) -> None:
    grid, matrix = Grid.parse(name), torch.randn(3, 16)
    learned = LearnedMatrix(grid.quantize(matrix), matrix)
    pull = torch.randn(3, 16)
    (learned() * pull).sum().backward()
    scales = grid.quantize(matrix).scales
    spread = grid.granularity.expand(scales.scale, 16)
    torch.testing.assert_close(learned.x.grad, (pull * spread).expand(3, 16))
    expected = (pull * grid.quantize(matrix).dequantize()).reshape(3, scales.scale.shape[1], -1).sum(2)
    torch.testing.assert_close(learned.stretch.grad, expected, atol=1e-4, rtol=1e-4)


def test_a_weight_whose_rounding_was_close_flips_first() -> None:
    matrix = torch.tensor([[-4.0, 0.49, 0.1, 3.0]])
    learned = LearnedMatrix(Grid.parse("int3:maxabs:fp32").quantize(matrix), matrix)
    with torch.no_grad():
        learned.x += 0.1
    assert learned.finish().codes.sub(4).tolist()[0][1:3] == [1, 0]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.short = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


def residual_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Residual(), Residual(), nn.Flatten(), nn.Linear(144, 5))
    with torch.no_grad():
        net[-1].weight.mul_(8)  # so that predictions differ from image to image
    return net.eval()


@pytest.mark.parametrize("name", QUICK)
def test_nearer_to_the_float_model_on_other_data(name: str) -> None:
    model, batches, fresh = residual_net(), small_batches(6, 32), small_batches(4, 32, seed=99)
    plan = uniform_plan(model, "int2:mse-signed")
    plain = quantize(model, plan, batches)
    tuned = quantize(model, plan, batches, refine=QUICK[name])
    before, after = (divergence(model, net, fresh).value for net in (plain, tuned))
    assert after < 0.8 * before
    again = quantize(model, plan, batches, refine=QUICK[name])
    assert all(torch.equal(a, b) for a, b in zip(tuned.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_refinement_that_finds_nothing_better_changes_nothing() -> None:
    """With a learning rate that throws every code about, the codes of the rounding come back, bit for bit."""
    model, batches = residual_net(), small_batches()
    plan = uniform_plan(model, "int4")
    plain = quantize(model, plan, batches)
    for wild in (NetworkTuning(steps=3, codes=50.0, free=9.0), BlockTuning(steps=3, codes=50.0, free=9.0)):
        tuned = quantize(model, plan, batches, refine=wild)
        pairs = zip(plain.state_dict().values(), tuned.state_dict().values(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("fold", [False, True])
def test_refined_models_survive_saving(name: str, fold: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    model, batches = small_net(), small_batches()
    if fold:
        gq.fold_batch_norm_(model)
    model = model.to(memory_format=torch.channels_last)
    plan = uniform_plan(model, "int3:mse-signed", {"head": "fp16", "stem": "int4:affine:group8"})
    gq.quantize_(model, plan, batches, refine=QUICK[name])
    path = gq.save(model, plan, tmp_path_factory.mktemp("saved"))
    assert path.stat().st_size == plan.bytes
    loaded = gq.load(path, small_net(5).to(memory_format=torch.channels_last))
    with inference(model), inference(loaded):
        assert torch.equal(model(batches[0][0]), loaded(batches[0][0]))


@pytest.mark.parametrize("name", QUICK)
def test_the_float_model_is_neither_changed_nor_hooked(name: str) -> None:
    model, batches = small_net(), small_batches()
    before = copy.deepcopy(model.state_dict())
    quantize(model, uniform_plan(model, "int3"), batches, refine=QUICK[name])
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_every_refinement_is_tried_here() -> None:
    assert set(REFINEMENTS) == set(QUICK)


def test_blocks_are_the_residual_ones_and_what_lies_between() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(Residual(), Residual()), nn.Conv2d(4, 2, 1)
    )
    found = find_blocks(model, find_sites(model), torch.zeros(2, 3, 8, 8))
    assert found == ["0", "2.0", "2.1", "3"]
    assert find_blocks(SmallNet(), find_sites(SmallNet()), torch.zeros(2, 1, 8, 8)) == ["stem", "block", "head"]


class TwoInputs(nn.Module):
    """Holds its layers in a module that takes two tensors, which is no block; a layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(2, 2, 2)
        self.inner = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.inner["a"](x), self.inner["b"](self.inner["b"](x)))


def test_what_is_no_block_stays_as_it_was_rounded() -> None:
    torch.manual_seed(0)
    model = TwoInputs().eval()
    batches = [torch.randn(8, 2) for _ in range(2)]
    assert find_blocks(model, find_sites(model), batches[0]) == ["inner.a"]
    plan = uniform_plan(model, "int2")
    plain = quantized_state(quantize(model, plan, batches)).matrices
    tuned = quantized_state(quantize(model, plan, batches, refine=QUICK["blocks"])).matrices
    assert torch.equal(plain["inner.b.weight"].codes, tuned["inner.b.weight"].codes)
