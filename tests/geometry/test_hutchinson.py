"""Traces against dense float64 Hessians: exact where they say so, within their standard error elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geometry import dense
from geoquant.errors import DataError, GeoquantError, LayerNameError, ModelError
from geoquant.geometry import gauss_newton_traces, hessian_traces
from geoquant.models import find_sites


def _diagonal_traces(parameters: dense.Parameters, matrix: torch.Tensor) -> dict[str, float]:
    return {name: float(matrix.diagonal()[parameters.span(name)].sum()) for name in parameters.items}


def _images(samples: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 2, 6, 6).double(), torch.randint(0, 3, (samples,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_trace_of_a_relu_net_is_exact(layout):
    x, y = _images()
    parameters = dense.Parameters(dense.Mixed())
    expected = _diagonal_traces(parameters, dense.hessian(parameters, x, y))
    model = parameters.model.to(memory_format=layout)
    found = hessian_traces(model, [(x.to(memory_format=layout), y)])
    for name in ("stem", "grouped", "padded", "up", "line", "head"):
        trace = found[f"{name}.weight"]
        assert trace.exact, name
        assert trace.value == pytest.approx(expected[f"{name}.weight"], rel=1e-9, abs=1e-12), name
        if f"{name}.bias" in expected:
            assert found[f"{name}.bias"].value == pytest.approx(expected[f"{name}.bias"], rel=1e-9), name


def test_circular_padding_writes_in_place_so_only_the_gauss_newton_trace_is_known():
    x, y = _images()
    parameters = dense.Parameters(dense.Mixed("circular"))
    wanted = _diagonal_traces(parameters, dense.gauss_newton(parameters, x))
    for name, trace in gauss_newton_traces(parameters.model, [(x, y)], ["stem", "padded"]).items():
        assert trace.exact
        assert trace.value == pytest.approx(wanted[f"{name}.weight"], rel=1e-9)
    assert not hessian_traces(parameters.model, [(x, y)], ["stem"])["stem"].exact


def test_traces_do_not_depend_on_how_the_data_is_cut_into_batches():
    x, y = torch.randn(70, 3).double(), torch.randint(0, 3, (70,))
    model = dense.relu_mlp()
    whole = hessian_traces(model, [(x, y)])
    parts = hessian_traces(model, [(x[:7], y[:7]), (x[7:], y[7:])])
    for name, trace in whole.items():
        assert parts[name].value == pytest.approx(trace.value, rel=1e-12)


def test_gauss_newton_of_a_smooth_net_is_exact_and_is_not_the_hessian():
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    parameters = dense.Parameters(dense.smooth_mlp())
    wanted = _diagonal_traces(parameters, dense.gauss_newton(parameters, x))
    curved = _diagonal_traces(parameters, dense.hessian(parameters, x, y))
    found = gauss_newton_traces(parameters.model, [(x, y)])
    for name, trace in found.items():
        assert trace.exact
        assert trace.value == pytest.approx(wanted[name], rel=1e-9)
    assert abs(curved["0.weight"] - wanted["0.weight"]) > 1e-3  # the twin: below a tanh G is not H
    assert curved["4.weight"] == pytest.approx(wanted["4.weight"], rel=1e-9)


def test_smooth_layers_are_probed_and_the_layer_above_them_is_exact():
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    parameters = dense.Parameters(dense.smooth_mlp())
    expected = _diagonal_traces(parameters, dense.hessian(parameters, x, y))
    found = hessian_traces(parameters.model, [(x, y)], probes=400, seed=3)
    assert found["4.weight"].exact
    for name in ("0.weight", "2.weight"):
        trace = found[name]
        assert not trace.exact
        assert trace.samples == 400
        assert abs(trace.value - expected[name]) < 4 * trace.stderr + 1e-12


def test_standard_errors_cover_the_truth_as_often_as_they_should():
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    parameters = dense.Parameters(dense.smooth_mlp())
    expected = _diagonal_traces(parameters, dense.hessian(parameters, x, y))["0.weight"]
    inside = 0
    for seed in range(60):
        trace = hessian_traces(parameters.model, [(x, y)], ["0"], probes=24, seed=seed, method="hutchinson")["0"]
        inside += abs(trace.value - expected) <= 2 * trace.stderr
    assert 50 <= inside <= 60  # 95 % nominal; a stderr off by a factor of two gives 41 or fewer


def test_the_control_variate_needs_fewer_probes_than_plain_hutchinson():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(40, 3).double()
    with torch.no_grad():  # labels that the net predicts well: small residual, as after training
        for parameter in model.parameters():
            parameter.mul_(2)
        y = model(x).argmax(1)
    plain = hessian_traces(model, [(x, y)], ["0"], probes=64, method="hutchinson")["0"]
    better = hessian_traces(model, [(x, y)], ["0"], probes=64)["0"]
    assert better.stderr < plain.stderr / 2


def test_probing_stops_at_the_target_standard_error():
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    model = dense.smooth_mlp()
    trace = hessian_traces(model, [(x, y)], ["0"], probes=2000, relative_stderr=0.1, method="hutchinson")["0"]
    assert trace.samples < 2000
    assert trace.stderr <= 0.1 * abs(trace.value)


def test_a_layer_used_twice_is_not_taken_for_affine():
    x, y = torch.randn(6, 3).double(), torch.randint(0, 2, (6,))
    parameters = dense.Parameters(dense.Twice())
    expected = _diagonal_traces(parameters, dense.hessian(parameters, x, y))
    exact = _diagonal_traces(parameters, dense.gauss_newton(parameters, x))
    gauss = gauss_newton_traces(parameters.model, [(x, y)])["shared.weight"]
    assert gauss.exact
    assert gauss.value == pytest.approx(exact["shared.weight"], rel=1e-9)
    trace = hessian_traces(parameters.model, [(x, y)], probes=400)["shared.weight"]
    assert not trace.exact
    assert abs(trace.value - expected["shared.weight"]) < 4 * trace.stderr


@pytest.mark.parametrize("tied", [True, False])
def test_attention_and_tied_embeddings(tied):
    tokens = torch.tensor([[0, 1, 2], [3, 4, 4], [1, 1, 0]])
    targets = torch.tensor([[1, 2, 0], [4, 4, 3], [1, 0, 2]])
    parameters = dense.Parameters(dense.Attending(tied))
    with torch.no_grad():
        parameters.model.mix.in_proj_weight.mul_(2)
    parameters = dense.Parameters(parameters.model)
    expected = _diagonal_traces(parameters, dense.hessian(parameters, tokens, targets))
    wanted = _diagonal_traces(parameters, dense.gauss_newton(parameters, tokens))
    batches = [(tokens, targets)]
    gauss = gauss_newton_traces(parameters.model, batches, probes=500)
    for name in ("embed.weight", "up.weight", "down.weight", "up.bias"):
        assert gauss[name].exact, name
        assert gauss[name].value == pytest.approx(wanted[name], rel=1e-9), name
    sampled = gauss["mix.in_proj_weight"]
    assert not sampled.exact
    assert abs(sampled.value - wanted["mix.in_proj_weight"]) < 4 * sampled.stderr
    found = hessian_traces(parameters.model, batches, find_sites(parameters.model), probes=300)
    for site in find_sites(parameters.model):
        trace = found[site.name]
        assert abs(trace.value - expected[site.parameter]) < 4 * trace.stderr + 1e-9, site.name
    assert found["down"].exact is True  # only affine operations above it
    if not tied:
        assert found["head"].exact


def test_many_outputs_are_sampled_within_their_standard_error():
    x, y = torch.randn(20, 3).double(), torch.randint(0, 3, (20,))
    model = dense.relu_mlp()
    exact = hessian_traces(model, [(x, y)])
    sampled = hessian_traces(model, [(x, y)], probes=200, exact_columns=2)
    for name, trace in exact.items():
        assert not sampled[name].exact
        assert 0 < sampled[name].stderr < 0.2 * trace.value
        assert abs(sampled[name].value - trace.value) < 4 * sampled[name].stderr


def test_divergence_from_itself_has_no_remainder():
    x = torch.randn(6, 3).double()
    parameters = dense.Parameters(dense.smooth_mlp())
    wanted = _diagonal_traces(parameters, dense.gauss_newton(parameters, x))
    found = hessian_traces(parameters.model, [x])
    for name, trace in found.items():
        assert trace.exact
        assert trace.value == pytest.approx(wanted[name], rel=1e-9)


def test_squared_error_of_a_linear_map_is_known_in_closed_form():
    layer = nn.Linear(3, 2, bias=False).double()
    x, t = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    trace = hessian_traces(layer, [(x, t)])["weight"]
    assert trace.value == pytest.approx(2 * float(x.square().sum(1).mean()), rel=1e-12)


def test_a_loss_of_ones_own_agrees_with_the_named_one():
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    model = dense.smooth_mlp()

    def loss(net, batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    own = hessian_traces(model, [(x, y)], probes=16, loss=loss)
    named = hessian_traces(model, [(x, y)], probes=16, loss="cross_entropy", method="hutchinson")
    for name, trace in own.items():
        assert trace.value == pytest.approx(named[name].value, rel=1e-9)


def test_masked_predictions_do_not_count():
    model = dense.relu_mlp()
    x = torch.randn(4, 2, 3).double()
    y = torch.tensor([[0, -100], [1, 2], [-100, -100], [2, 0]])
    kept = y.flatten() != -100
    flat = x.flatten(0, 1)[kept], y.flatten()[kept]
    masked, plain = hessian_traces(model, [(x, y)]), hessian_traces(model, [flat])
    for name, trace in plain.items():
        assert masked[name].value == pytest.approx(trace.value, rel=1e-9)


def test_the_model_is_left_as_it_was():
    model = dense.Mixed().double().train()
    model.stem.weight.requires_grad_(False)
    model.norm.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hessian_traces(model, [_images()], ["stem"])
    assert model.training
    assert not model.norm.training
    assert not model.stem.weight.requires_grad
    assert model.head.weight.requires_grad
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_batch_norm_with_batch_statistics_couples_samples_and_is_not_called_exact():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    x, y = torch.randn(40, 3).double(), torch.randint(0, 3, (40,))
    parameters = dense.Parameters(model)
    expected = _diagonal_traces(parameters, dense.hessian(parameters, x, y))
    trace = hessian_traces(parameters.model, [(x, y)], ["0"], probes=400)["0"]
    assert not trace.exact
    assert abs(trace.value - expected["0.weight"]) < 4 * trace.stderr


def test_a_layer_that_sees_the_batch_on_another_axis_is_not_taken_apart_by_samples():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):  # (samples, time, features), mixed over time by cumulative sums
            return self.inner(x.transpose(0, 1)).cumsum(0).transpose(0, 1)

    x, y = torch.randn(3, 3, 3).double(), torch.randint(0, 3, (3, 3))
    parameters = dense.Parameters(TimeFirst())
    wanted = _diagonal_traces(parameters, dense.gauss_newton(parameters, x))
    trace = gauss_newton_traces(parameters.model, [(x, y)], ["inner"], probes=300)["inner"]
    assert not trace.exact
    assert abs(trace.value - wanted["inner.weight"]) < 4 * trace.stderr


def test_the_same_seed_gives_the_same_answer_and_another_seed_another():
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    model = dense.smooth_mlp()
    first, again, other = (hessian_traces(model, [(x, y)], ["0"], probes=4, seed=seed)["0"] for seed in (1, 1, 2))
    assert first == again
    assert first.value != other.value


def test_bad_calls_say_what_is_wrong():
    model = dense.relu_mlp()
    x, y = torch.randn(4, 3).double(), torch.randint(0, 3, (4,))
    with pytest.raises(DataError, match="no batch"):
        hessian_traces(model, [])
    with pytest.raises(DataError, match="masked"):
        hessian_traces(model, [(x, torch.full((4,), -100))])
    with pytest.raises(DataError, match="one integer class per prediction"):
        hessian_traces(model, [(x, y[:3])])
    with pytest.raises(LayerNameError, match="no parameter '7'"):
        hessian_traces(model, [(x, y)], ["7"])
    with pytest.raises(GeoquantError, match="at least 2"):
        hessian_traces(model, [(x, y)], probes=1)
    with pytest.raises(ModelError, match="NaN or Inf"):
        hessian_traces(model, [(x * float("nan"), y)])
    model[2].weight = nn.Parameter(model[0].weight.detach()[:, :1].expand(4, 4).contiguous())
    model[2].bias = nn.Parameter(model[0].bias.detach())
    with pytest.raises(ModelError, match="shares its memory"):
        hessian_traces(model, [(x, y)])


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(GeoquantError, match="need autograd"):
        hessian_traces(dense.relu_mlp(), [torch.randn(4, 3).double()])
