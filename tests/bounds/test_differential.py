"""The differential bound: exact where nothing bends, never exceeded where it does, tighter than the alternatives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bounds.models import Attention, Pooled, Rearranged, Residual, perturbed, seeded, settled
from geoquant.bounds.differential import differential_bound
from geoquant.bounds.graph import Constant
from geoquant.bounds.pair_affine import Context
from geoquant.bounds.relaxation import relu
from geoquant.bounds.search import attacked_error, sampled_error
from geoquant.bounds.zonotope import Form, Pair, add, box
from geoquant.errors import DataError, GeoquantError

NETS = {
    "mlp": (lambda: seeded(None, 6, 12, 10, 3), (6,)),
    "residual": (lambda: seeded(Residual), (2, 6, 6)),
    "pooled": (lambda: seeded(Pooled), (1, 9, 9)),
    "rearranged": (lambda: seeded(Rearranged), (2, 3)),
}


def corners(center: Tensor, radius: float) -> Tensor:
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=center.numel())), dtype=torch.float64)
    return center + radius * signs.reshape(-1, *center.shape[1:])


def difference(model: nn.Module, quantized: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result = quantized.double()(x) - model.double()(x)
    model.float(), quantized.float()
    return result


def test_an_affine_net_is_bounded_exactly():
    model = settled(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)))
    quantized = perturbed(model, 0.1)
    center = torch.randn(1, 5)
    result = differential_bound(model, quantized, center, 0.5)
    values = difference(model, quantized, corners(center.double(), 0.5))
    assert torch.allclose(result.lower[0], values.amin(0), atol=1e-12)
    assert torch.allclose(result.upper[0], values.amax(0), atol=1e-12)


def test_an_affine_net_under_plain_intervals_is_loose():
    model = settled(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)))
    quantized, center = perturbed(model, 0.1), torch.randn(1, 5)
    sharp = differential_bound(model, quantized, center, 0.5).largest
    plain = differential_bound(model, quantized, center, 0.5, symbols=0).largest
    assert float(plain) > 1.5 * float(sharp)


@pytest.mark.parametrize("name", NETS)
def test_a_point_is_bounded_by_its_value(name: str):
    make, shape = NETS[name]
    model = make()
    quantized, center = perturbed(model, 0.1), torch.randn(2, *shape)
    result = differential_bound(model, quantized, center, 0.0)
    value = difference(model, quantized, center.double())
    assert torch.all((result.upper - result.lower) < 1e-9)
    assert torch.all((result.lower <= value) & (value <= result.upper))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("size", "radius"), [(0.005, 0.02), (0.05, 0.2), (0.5, 1.0)])
def test_no_point_exceeds_the_bound(name: str, size: float, radius: float):
    make, shape = NETS[name]
    model = make()
    quantized, center = perturbed(model, size), torch.randn(1, *shape)
    noise = (torch.rand(1000, *shape, dtype=torch.float64) * 2 - 1).sign() * torch.rand(1000, *[1] * len(shape)).sqrt()
    values = difference(model, quantized, center.double() + radius * noise)
    attacked = float(attacked_error(model, quantized, center, radius, restarts=2, steps=20))
    for symbols in (0, 40, None):
        result = differential_bound(model, quantized, center, radius, symbols=symbols)
        assert result.not_covered == ()
        assert torch.all((result.lower <= values) & (values <= result.upper))
        assert attacked <= float(result.largest)


def test_a_hundred_thousand_samples_and_a_thousand_attacks_stay_below():
    model = seeded(None, 10, 24, 16, 4)
    quantized, center = perturbed(model, 0.03), torch.randn(1, 10)
    result = differential_bound(model, quantized, center, 0.05)
    sampled = float(sampled_error(model, quantized, center, 0.05, samples=100_000))
    attacked = float(attacked_error(model, quantized, center, 0.05, restarts=125, steps=30))
    assert sampled <= attacked <= float(result.largest) <= 1.5 * attacked


def test_more_symbols_are_tighter_and_no_symbols_are_intervals():
    model = seeded(None, 8, 16, 16, 3)
    quantized, center = perturbed(model, 0.02), torch.randn(4, 8)
    bounds = [
        float(differential_bound(model, quantized, center, 0.05, symbols=n).largest.mean()) for n in (0, 4, 8, 64)
    ]
    assert all(tighter < looser for looser, tighter in itertools.pairwise(bounds))


def test_float32_evaluation_is_covered_when_asked_and_only_then():
    model = seeded(None, 64, 64, 3)
    quantized, center = perturbed(model, 1e-7), torch.randn(1, 64) * 30
    x = center + 0.01 * (torch.rand(500, 64) * 2 - 1)
    with torch.no_grad():
        seen = (quantized(x) - model(x)).abs().max()
    exact = differential_bound(model, quantized, center, 0.01)
    covering = differential_bound(model, quantized, center, 0.01, arithmetic="float32")
    assert float(seen) <= float(covering.largest)
    assert float(seen) > float(exact.largest)  # the negative twin: rounding of the run exceeds the real functions' gap


def test_a_batch_norm_whose_shift_cancels_still_rounds():
    # γ(x − μ)/σ + β with β = γμ/σ: the folded shift is 0, but float32 computes it as a difference of two large numbers.
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean.fill_(9999.7)
    norm.running_var.copy_(torch.tensor([0.7, 1.3, 2.1, 3.3]))
    norm.bias.data = norm.running_mean / (norm.running_var + norm.eps).sqrt()
    quantized, center = perturbed(norm, 1e-7), torch.rand(1, 4, 2, 2)
    with torch.no_grad():
        seen = (quantized(center) - norm(center)).abs().max()
    assert float(seen) <= float(differential_bound(norm, quantized, center, 0.0, arithmetic="float32").largest)


def test_models_and_inputs_may_differ_in_precision():
    model = seeded(None, 4, 6, 2)
    quantized, center = perturbed(model, 0.1), torch.randn(1, 4)
    single = differential_bound(model, quantized, center.double(), 0.1).largest
    assert torch.equal(single, differential_bound(model.double(), quantized.double(), center, 0.1).largest)


def test_the_bound_is_not_twice_the_bound_of_one_network():
    # Two nets each move by much over the box while their difference stays small: pairs see it, single bounds cannot.
    model = seeded(None, 8, 16, 3)
    quantized, center = perturbed(model, 1e-3), torch.randn(1, 8)
    values = model(corners(center.double(), 0.1).float()).detach()
    spread = float((values.amax(0) - values.amin(0)).max())
    assert float(differential_bound(model, quantized, center, 0.1).largest) < 0.1 * spread


@pytest.mark.parametrize("seed", range(6))
def test_relu_covers_every_point_of_its_forms(seed: int):
    """Draw points of random forms and check that the output forms hold relu(x) and relu(x + d) − relu(x)."""
    rng = np.random.default_rng(seed)

    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.tensor(rng.normal(size=shape) * scale)

    width, count = 40, 5
    scale = 10.0 ** rng.uniform(-3, 1)
    value = Form(tensor(1, width), tensor(count, 1, width, scale=0.3), torch.full((1, width), 0.05).double(), 10.0)
    error = Form(
        tensor(1, width, scale=scale), tensor(count, 1, width, scale=scale), torch.full((1, width), 0.02).double(), 10.0
    )
    names = torch.arange(count)
    context = Context(10_000, 2.0**-53, used=count)
    result = relu(Pair(value, error, names), context)
    for _ in range(200):
        signs = torch.tensor(rng.uniform(-1, 1, count)).sign() * rng.uniform() ** 0.3
        x = value.center + (signs[:, None, None] * value.symbols).sum(0) + rng.uniform(-1, 1) * value.slack
        d = error.center + (signs[:, None, None] * error.symbols).sum(0) + rng.uniform(-1, 1) * error.slack
        for form, true in ((result.value, x.relu()), (result.error, (x + d).relu() - x.relu())):
            # The known symbols keep their meaning; the new ones and the remainder must cover what is left.
            left = true - form.center - (signs[:, None, None] * form.symbols[:count]).sum(0)
            room = form.symbols[count:].abs().sum(0) + form.slack
            assert torch.all(left.abs() <= room)


def test_relu_shares_the_error_term_so_that_the_sum_cancels():
    # x on [−1, 3] and x̂ = 0: relu(x) needs an error term, and relu(x) + (relu(x̂) − relu(x)) must lose it again.
    one = torch.ones(1, 3, dtype=torch.float64)
    value = box(one, 2 * one, 10)
    pair = Pair(value, Form(-value.center, -value.symbols, 0 * one, 0.0), torch.arange(3))
    result = relu(pair, Context(100, 2.0**-53, used=3))
    assert float(result.value.reach().max()) > 1.5
    stored = result.value.symbols + result.error.symbols
    assert float(stored.abs().sum(0).max()) < 1e-12


def test_sums_match_symbols_by_name():
    zero = torch.zeros(1, 1, dtype=torch.float64)

    def pair(names: list[int], coefficients: list[float]) -> Pair:
        symbols = torch.tensor(coefficients, dtype=torch.float64).reshape(-1, 1, 1)
        return Pair(Form(zero, symbols, zero, 0.0), Form(zero, -symbols, zero, 0.0), torch.tensor(names))

    total = add(pair([0, 1, 4], [1.0, 2.0, 3.0]), pair([1, 2], [-2.0, 5.0]))
    assert total.names.tolist() == [0, 1, 2, 4]
    assert total.value.symbols.flatten().tolist() == [1.0, 0.0, 5.0, 3.0]
    assert float(total.value.reach()) == pytest.approx(9.0)


def test_the_remainder_norm_keeps_rounding_small_in_deep_nets():
    # Orthogonal layers: |W| grows errors by about √n a layer, the norm by 1.
    torch.manual_seed(0)
    layers = [nn.utils.parametrizations.orthogonal(nn.Linear(32, 32, bias=False)) for _ in range(20)]
    for layer in layers:
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    model = nn.Sequential(*layers).eval()
    result = differential_bound(model, perturbed(model, 0.0), torch.randn(1, 32), 0.0)
    assert float(result.largest) < 1e-10 < math.sqrt(32) ** 19 * 1e-15


def test_what_is_not_covered_is_named():
    model = seeded(Attention).layer
    result = differential_bound(model, perturbed(model, 0.01), torch.randn(1, 5, 8), 0.1)
    assert any("layer_norm" in name or "norm1" in name for name in result.not_covered)
    assert torch.isinf(result.largest).all()


def test_a_constant_is_the_same_only_when_equal():
    assert Constant(torch.ones(2), torch.ones(2)).same
    assert not Constant(torch.ones(2), torch.zeros(2)).same


@pytest.mark.parametrize(
    ("inputs", "radius", "options", "error"),
    [
        (torch.zeros(0, 6), 0.1, {}, DataError),
        (torch.zeros(1, 6), -0.1, {}, DataError),
        (torch.zeros(1, 6), math.nan, {}, DataError),
        (torch.zeros(1, 6, dtype=torch.long), 0.1, {}, DataError),
        (torch.zeros(1, 6), 0.1, {"arithmetic": "bfloat16"}, GeoquantError),
        (torch.zeros(1, 6), 0.1, {"symbols": -1}, GeoquantError),
    ],
)
def test_meaningless_boxes_are_refused(inputs: Tensor, radius: float, options: dict, error: type[Exception]):
    model = seeded(None, 6, 4, 2)
    with pytest.raises(error):
        differential_bound(model, model, inputs, radius, **options)
