"""What is measured during training, against dense Hessians and slow references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geoquant.errors import ModelError
from geoquant.training import adaptive
from geoquant.training.measuring import LastBatch, Meter
from geoquant.training.numerics import step_share
from training_nets import conv_net, image_batches, optimizer_of


def two_layers() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
    return model, torch.randn(8, 3).double(), torch.randint(0, 2, (8,))


def dense_hessian(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    sizes = [s.numel() for s in shapes]

    def loss(vector: torch.Tensor) -> torch.Tensor:
        first, second = (v.view(s) for v, s in zip(vector.split(sizes), shapes, strict=True))
        return F.cross_entropy(torch.tanh(x @ first.T) @ second.T, y)

    return torch.autograd.functional.hessian(loss, flat)


def meter_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Meter:
    run = adaptive(model, torch.optim.SGD(model.parameters(), 0.1), "uniform:int8")
    return Meter(model, list(run.layers.values()), lambda: F.cross_entropy(model(x), y), 0)


def test_curvature_columns_are_products_with_the_hessian_and_settle_at_the_largest_eigenvalues():
    model, x, y = two_layers()
    meter, hessian = meter_of(model, x, y), dense_hessian(model, x, y)
    start = meter.curvature(whole=True)
    for _ in range(60):
        meter.curvature(whole=True)
        moves = {name: vector.clone() for name, vector in meter.vectors.items()}
    columns = meter.curvature(whole=True)
    first, second = moves["0"].flatten(), moves["2"].flatten()
    assert columns[0] == pytest.approx(
        [float((hessian[:12, :12] @ first).norm()), float((hessian[12:, :12] @ first).norm())]
    )
    assert columns[1][0] == pytest.approx(float((hessian[:12, 12:] @ second).norm()))
    assert columns[0][0] == pytest.approx(float(torch.linalg.eigvalsh(hessian[:12, :12]).abs().max()), rel=0.02)
    assert columns[0][0] >= start[0][0]
    assert meter.curvature(whole=False).keys() == {0}
    assert meter.curvature(whole=False).keys() == {1}


def test_noise_is_what_rounding_one_layer_does_and_falls_with_the_squared_step():
    model, batch = conv_net().eval(), image_batches(1, 256)[0]
    found = {}
    for name in ("uniform:int6", "uniform:int8"):
        run = adaptive(model, optimizer_of(model), name)
        layers = list(run.layers.values())
        meter = Meter(model, layers, lambda: F.cross_entropy(model(batch[0]), batch[1]), 0)
        with run:
            noise = meter.noise(whole=True)
        found[name] = torch.tensor([sum(noise.rows[j]) for j in range(3)])
        alone = found[name] * step_share(name.removeprefix("uniform:")) ** 2
        assert 0.5 < sum(noise.together) / float(alone.sum()) < 2  # errors of layers are nearly independent
        assert run.operations.flops["forward"] == 0
    plain = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), [m.module.weight for m in layers])
    assert noise.exact == pytest.approx([float(g.norm()) for g in plain], rel=1e-4)
    shares = {name: step_share(name.removeprefix("uniform:")) ** 2 for name in found}
    assert (found["uniform:int6"] * shares["uniform:int6"] > 2 * found["uniform:int8"] * shares["uniform:int8"]).all()


def test_labels_drawn_from_predictions_give_the_gauss_newton_matrix_on_average():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 3, bias=False).double(), torch.randn(6, 3).double()
    last = LastBatch(model, 0)
    last.remember(model, (x,), {})
    p = model(x).softmax(-1).detach()
    fisher = sum(torch.kron(torch.diag(p[i]) - torch.outer(p[i], p[i]), torch.outer(x[i], x[i])) for i in range(6)) / 6
    total = torch.zeros(9, dtype=torch.double)
    for _ in range(400):
        gradient = torch.autograd.grad(last(), model.weight)[0].flatten()
        total += gradient.square() * 6
    # The squared gradient of n independent draws has n⁻¹ of the Fisher diagonal as its mean.
    assert torch.allclose(total / 400, fisher.diagonal(), rtol=0.3, atol=0.01)


def test_without_a_call_or_logits_the_probe_says_so():
    with pytest.raises(ModelError, match="probe="):
        LastBatch(nn.Linear(1, 1), 0)()
    model = nn.Flatten(0)
    last = LastBatch(model, 0)
    last.remember(model, (torch.zeros(2, 3),), {})
    with pytest.raises(ModelError, match="logits"):
        last()


def test_noise_is_seen_through_the_batch_statistics_of_training_and_leaves_no_trace():
    """Behind a batch norm a weight's length does not matter, so its gradient has no part along the weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    frozen = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8).eval(), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))
    along = []
    for net in (model.train(), frozen):
        run = adaptive(net, optimizer_of(net), "uniform:int6")
        meter = Meter(net, list(run.layers.values()), lambda net=net: F.cross_entropy(net(x), y), 0)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with run:
            gradient = meter.gradients(())[0]
            assert torch.equal(gradient, meter.gradients(())[0])  # no dropout
        along.append(
            float(
                (gradient * meter.weights[0].detach()).sum().abs() / gradient.norm() / meter.weights[0].detach().norm()
            )
        )
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert along[0] < 1e-3 < along[1]
