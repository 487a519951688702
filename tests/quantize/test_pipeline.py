"""Layer after layer: rounded for what really arrives, corrected for what that moved, on a copy until all is done."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.errors import PlanError, UnknownNameError
from geoquant.grids import Grid
from geoquant.models import inference
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize, quantized_state
from geoquant.rounding import ROUNDINGS, Gptq, RoundingContext
from nets import small_batches, small_net


def outputs(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    with inference(model):
        return torch.cat([model(inputs) for inputs, _ in batches])


def test_second_layer_is_rounded_for_the_quantized_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    batches = [torch.randn(64, 12) for _ in range(3)]
    plan = uniform_plan(model, "int3")
    done = quantize(model, plan, batches, rounding="gptq", norms="none")
    hidden = torch.cat([done[1](done[0](batch)) for batch in batches]).detach().double()
    matrix = model[2].weight.detach()
    own = Gptq()(matrix, Grid.parse("int3"), RoundingContext(hidden.T @ hidden / len(hidden)))
    assert torch.equal(done[2].weight, own.dequantize())
    float_hidden = torch.cat([model[1](model[0](batch)) for batch in batches]).detach().double()
    other = Gptq()(matrix, Grid.parse("int3"), RoundingContext(float_hidden.T @ float_hidden / len(float_hidden)))
    assert not torch.equal(own.codes, other.codes), "the twin: the float prefix gives other codes"


def test_statistics_after_correction_are_those_of_the_float_model() -> None:
    """Seen through a corrected norm, each channel's mean and variance are what they were in float."""
    model, batches = small_net(), small_batches(4, 32)
    plan = uniform_plan(model, "int2")

    def seen(net: nn.Module) -> Tensor:
        with inference(net):
            out = torch.cat([net.norm(net.stem(inputs)) for inputs, _ in batches]).transpose(0, 1).flatten(1)
        return torch.stack([out.mean(1), out.std(1)])

    corrected = quantize(model, plan, batches, rounding="nearest")
    left = quantize(model, plan, batches, rounding="nearest", norms="none")
    torch.testing.assert_close(seen(corrected), seen(model), atol=1e-5, rtol=1e-5)
    assert (seen(left) - seen(model)).abs().max() > 0.03
    assert torch.equal(left.norm.running_mean, model.norm.running_mean)


def test_bias_correction_restores_the_mean_logits() -> None:
    model, batches = small_net(), small_batches(4, 32)
    plan = uniform_plan(model, "int2")
    corrected, left = (quantize(model, plan, batches, rounding="gptq", norms=norms) for norms in ("relative", "none"))
    mean = outputs(model, batches).mean(0)
    torch.testing.assert_close(outputs(corrected, batches).mean(0), mean, atol=1e-5, rtol=1e-4)
    assert (outputs(left, batches).mean(0) - mean).abs().max() > 1e-3


def test_nothing_to_correct_leaves_everything_alone() -> None:
    model, batches = small_net(), small_batches()
    before = copy.deepcopy(model.state_dict())
    gq.quantize_(model, uniform_plan(model, "fp32"), batches)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rounding", ROUNDINGS.names())
@pytest.mark.parametrize("fold", [False, True])
def test_corrected_models_survive_saving(rounding: str, fold: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    model, batches = small_net(), small_batches()
    if fold:
        gq.fold_batch_norm_(model)
    plan = uniform_plan(model, "int3:mse-signed")
    gq.quantize_(model, plan, batches, rounding=rounding)
    path = gq.save(model, plan, tmp_path_factory.mktemp("saved"))
    assert path.stat().st_size == plan.bytes
    assert torch.equal(outputs(gq.load(path, small_net(5)), batches), outputs(model, batches))


def test_defaults_with_and_without_data() -> None:
    model, batches = small_net(), small_batches()
    plan = uniform_plan(model, "int2")
    blind, seeing = quantize(model, plan), quantize(model, plan, batches)
    assert torch.equal(blind.stem.weight, quantize(model, plan, rounding="nearest", norms="none").stem.weight)
    assert torch.equal(blind.norm.running_mean, model.norm.running_mean)
    again = quantize(model, plan, iter(batches), rounding="descent", norms="relative")
    assert torch.equal(outputs(seeing, batches), outputs(again, batches))
    error = [(outputs(net, batches) - outputs(model, batches)).square().mean() for net in (seeing, blind)]
    assert error[0] < 0.7 * error[1]


def test_what_needs_data_says_so_and_leaves_the_model_alone() -> None:
    model = small_net()
    plan, before = uniform_plan(model, "int4"), copy.deepcopy(model.state_dict())
    with pytest.raises(PlanError, match="pass calibration"):
        gq.quantize_(model, plan, rounding="gptq")
    with pytest.raises(PlanError, match="pass calibration"):
        gq.quantize_(model, plan, norms="relative")
    with pytest.raises(UnknownNameError, match="relative"):
        gq.quantize_(model, plan, small_batches(), norms="relativ")
    with pytest.raises(gq.GeoquantError):
        gq.quantize_(model, plan, [(torch.zeros(1, 1, 8, 8), torch.zeros(1)), (torch.full((1, 1, 8, 8), torch.nan), 0)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(PlanError, match="not quantized"):
        quantized_state(model)


class Tied(nn.Module):
    """An embedding, a layer that is used twice, and a head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.twice = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.twice(torch.tanh(self.twice(self.embed(tokens)))))
        return self.head(self.attend(x, x, x)[0])


def test_shared_joint_and_unreached_weights() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    batches = [torch.randint(0, 10, (4, 7)) for _ in range(3)]
    bias = model.twice.bias.clone()
    gq.quantize_(model, uniform_plan(model, "int4"), batches)
    assert quantized_state(model).unseen == ("attend.out_proj", "unused")
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.twice.bias, bias), "a layer that runs twice has no one output error to take back"


def test_an_embedding_alone_is_rounded_to_nearest_and_named() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 3)).eval()
    embedding = model[0].weight.detach().clone()
    gq.quantize_(model, uniform_plan(model, "int3"), [torch.randint(0, 10, (4, 7))])
    assert quantized_state(model).unseen == ("0",)
    assert torch.equal(model[0].weight, Grid.parse("int3").quantize(embedding).dequantize())


def test_a_dead_channel_does_not_blow_up() -> None:
    """All weights of a channel round to 0: its variance vanishes, and the norm must not divide by that."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)).eval()
    with torch.no_grad():
        model[0].weight[0] *= 1e-4  # below half a step of the scale that all channels share
    batches = [torch.randn(8, 2, 4, 4) for _ in range(2)]
    gq.quantize_(model, uniform_plan(model, "int4:tensor:maxabs"), batches, rounding="nearest")
    assert model[0].weight[0].abs().sum() == 0
    assert float(outputs(model, [(batches[0], batches[0])]).abs().max()) < 10
