"""Equalisation, SmoothQuant and AWQ: known answers, lower errors where theory says so, refusals where not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from geoquant.errors import GeoquantError
from geoquant.grids import ActivationGrid, Grid
from geoquant.models import fold_batch_norm_
from geoquant.plan import uniform_plan
from geoquant.transforms import Awq, SmoothQuant, TransformReport, transform, transform_
from transforms.models import case

GENERATOR = torch.Generator().manual_seed(0)


def pair(between: nn.Module) -> nn.Sequential:
    """Two layers without biases: rows of range 8 and 0.5, columns of range 0.5 and 8."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), between, nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0], [-0.5]]))
        model[2].weight.copy_(torch.tensor([[0.5, 8.0]]))
    return model


def run(model: nn.Module, name: object, batch: Tensor, plan: object = None) -> TransformReport:
    (report,) = transform_(model, [name], [batch], plan)  # type: ignore[list-item, arg-type]
    return report


def test_equalised_ranges_are_geometric_means() -> None:
    model = pair(nn.ReLU())
    run(model, "equalize", torch.tensor([[1.0], [-1.0]]))
    torch.testing.assert_close(model[0].weight, torch.tensor([[2.0], [-2.0]]))
    torch.testing.assert_close(model[2].weight, torch.tensor([[2.0, 2.0]]))


def test_a_layer_in_the_middle_settles_with_both_neighbours() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.LeakyReLU(), nn.Linear(7, 2))
    with torch.no_grad():
        model[0].weight.mul_(10 ** torch.linspace(-1, 1, 6)[:, None])
        model[4].weight.mul_(10 ** torch.linspace(-1, 1, 7))
    run(model, "equalize", torch.randn(3, 5))
    for first, second in ((0, 2), (2, 4)):
        rows, columns = model[first].weight.abs().amax(1), model[second].weight.abs().amax(0)
        torch.testing.assert_close(rows, columns, atol=0, rtol=1e-2)


@pytest.mark.parametrize("between", [nn.GELU(), nn.ReLU6(), nn.Sigmoid(), nn.Softplus()])
def test_equalising_refuses_what_is_not_homogeneous(between: nn.Module) -> None:
    report = run(pair(between), "equalize", torch.tensor([[1.0]]))
    assert not report.applied
    assert {each.source for each in report.skipped} == {"0", "2"}
    assert "reads it" in report.skipped[0].reason


def test_a_batch_norm_takes_the_division_as_folding_would() -> None:
    """Equalising with the norm in between, and then folding, gives what folding first and equalising then gives."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    with torch.no_grad():
        model[1].weight.uniform_(0.1, 5.0)
        model[1].running_var.uniform_(0.1, 5.0)
        model[1].bias.normal_()
    folded, batch = copy.deepcopy(model), torch.randn(2, 2, 5, 5)
    run(model, "equalize", batch)
    fold_batch_norm_(model)
    fold_batch_norm_(folded)
    run(folded, "equalize", batch)
    torch.testing.assert_close(model[3].weight, folded[3].weight)
    torch.testing.assert_close(model[0].weight, folded[0].weight)


def relative_error(model: nn.Module, wanted: Tensor, batch: Tensor, weights: str, inputs: str | None = None) -> float:
    """Round weights, and inputs of the last layer, to nearest; return the squared error over the output's square."""
    rounded = copy.deepcopy(model)
    for layer in rounded:
        if isinstance(layer, nn.Linear):
            layer.weight.data = Grid.parse(weights).quantize(layer.weight.data).dequantize()
    grid = None if inputs is None else ActivationGrid.parse(inputs)

    def onto(_: nn.Module, args: tuple[Tensor]) -> Tensor | None:
        return None if grid is None else grid.quantize_dynamically(args[0])

    rounded[-1].register_forward_pre_hook(onto)
    with torch.no_grad():
        return float((rounded(batch) - wanted).square().sum() / wanted.square().sum())


def test_equalising_lowers_the_error_of_a_grid_per_tensor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))
    with torch.no_grad():
        model[0].weight[0] *= 100
        model[2].weight[:, 0] /= 100
    batch = torch.randn(256, 16)
    wanted, grid = model(batch).detach(), "int4:tensor"
    before = relative_error(model, wanted, batch, grid)
    for plan in (None, uniform_plan(model, grid)):
        done = transform(model, "equalize", [batch], plan)
        assert relative_error(done, wanted, batch, grid) < before / 4
    even = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    for layer in (even[0], even[2]):
        layer.weight.data.copy_(torch.tensor([[1.0, -0.5, 0.2, 1.0]]).expand(4, 4).tril() + torch.eye(4))
    report = run(even, "equalize", torch.randn(9, 4), uniform_plan(even, "fp32"))
    assert [each.reason for each in report.skipped if each.source == "0"] == [
        "equalising does not lower the estimated error"
    ], "the twin: without rounding nothing can be lowered"


class Outlier(nn.Sequential):
    """A norm with one channel a hundred times the others, and a layer behind it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        super().__init__(nn.LayerNorm(32), nn.Linear(32, 16, bias=False))
        with torch.no_grad():
            self[0].weight.fill_(1.0)
            self[0].weight[3] = 100.0
            self[1].weight.copy_(torch.randn(16, 32, generator=generator))


def test_smoothquant_shares_the_difficulty_evenly() -> None:
    model = nn.Sequential(nn.RMSNorm(2), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([16.0, 1.0]))
        model[1].weight.copy_(torch.tensor([[1.0, 4.0]]))
    batch = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])  # normed to ±1
    run(model, "smoothquant", batch)
    torch.testing.assert_close(model[0].weight, torch.tensor([4.0, 2.0]), atol=1e-4, rtol=0)  # s = 4 and 0.5
    torch.testing.assert_close(model[1].weight, torch.tensor([[4.0, 2.0]]), atol=1e-4, rtol=0)


def test_smoothquant_lowers_the_error_of_eight_bit_inputs() -> None:
    model, batch = Outlier(), torch.randn(64, 32, generator=GENERATOR)
    wanted = model(batch).detach()
    plan = uniform_plan(model, "int8", activations="int8")
    before = relative_error(model, wanted, batch, "int8", "int8")
    after = relative_error(transform(model, "smoothquant", [batch], plan), wanted, batch, "int8", "int8")
    assert after < before / 10
    report = run(model, "smoothquant", batch, uniform_plan(model, "int4"))
    assert {each.source: each.reason for each in report.skipped}["0"] == "what reads it has float inputs"


def test_smoothquants_strength() -> None:
    with pytest.raises(GeoquantError, match="between 0 and 1, got 2"):
        SmoothQuant(alpha=2.0)
    model, batch = Outlier(), torch.randn(64, 32, generator=GENERATOR)
    everything = copy.deepcopy(model)
    run(everything, SmoothQuant(alpha=1.0), batch)
    largest = everything[0](batch).abs().amax(0)
    torch.testing.assert_close(largest, torch.ones(32), atol=1e-4, rtol=1e-4)


def test_awq_guards_the_columns_of_large_inputs() -> None:
    model, batch = Outlier(), torch.randn(256, 32, generator=GENERATOR)
    wanted, plan = model(batch).detach(), uniform_plan(model, "int3")
    before = relative_error(model, wanted, batch, "int3")
    (report,) = transform_(model, "awq", [batch], plan)
    after = relative_error(model, wanted, batch, "int3")
    assert after < before / 2
    (applied,) = report.applied
    said = float(applied.note.split("× ")[1])
    assert after / before == pytest.approx(said, abs=0.02), "the search measures what rounding then does"


def test_awq_leaves_even_inputs_alone() -> None:
    """The twin: where all inputs are of one size every exponent gives the same weights."""
    model = nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 3))
    batch = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    report = run(model, "awq", batch, uniform_plan(model, "int3"))
    assert {each.source: each.reason for each in report.skipped}["0"] == (
        "no exponent lowers the error of what reads it"
    )
    with pytest.raises(GeoquantError, match="steps=0"):
        Awq(steps=0)


def test_fused_projections_move_only_what_may_move() -> None:
    """GPT-2's joint projection: the values may be scaled, queries and keys may not."""
    model, batch = case("gpt2")
    before = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    (report,) = transform_(model, "awq", [batch], uniform_plan(model, "int3"))
    notes = {each.source: each.note for each in report.applied}
    assert "some channels stay" in notes["transformer.h.0.attn.c_attn"]
    after = model.transformer.h[0].attn.c_attn.weight.detach() / before
    rows = after / after[:, :1]  # the norm before it scales whole rows
    assert torch.allclose(rows[:, :32], torch.ones(16, 32).double())
    assert not torch.allclose(rows[:, 32:], torch.ones(16, 16).double(), atol=1e-3)


class _ActivatedNorm(nn.BatchNorm1d):
    """A batch norm that ends in a function that no factor passes through."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class _ScaledLinear(nn.Linear):
    """A linear layer that adds something of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.square().mean(-1, keepdim=True)


def test_subclasses_with_a_forward_of_their_own_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), _ActivatedNorm(4), _ScaledLinear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    for name in ("equalize", "smoothquant", "awq"):
        report = run(copy.deepcopy(model), name, torch.randn(6, 3), uniform_plan(model, "int3", activations="int4"))
        assert not report.applied
        left = {each.source: each.reason for each in report.skipped}
        assert left["0"] == "'1' (_ActivatedNorm) reads it"
        assert left["1"] == "it has no scale per channel"
