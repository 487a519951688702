"""Kronecker factors: exact where theory says so, and the textbook's formula elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geometry import dense
from geoquant.errors import ModelError
from geoquant.geometry import displacement_gram, gauss_newton_traces, kronecker_factors


def _exact(model, batches, name, delta, loss="auto"):
    return float(displacement_gram(model, batches, {name: delta}, loss=loss)[0, 0])


def test_exact_for_deep_linear_nets_with_squared_error():
    model = nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    ).double()
    batches = [(torch.randn(9, 3).double(), torch.randn(9, 2).double())]
    for name, factors in kronecker_factors(model, batches, ["0", "1", "2"]).items():
        delta = torch.randn_like(model[int(name)].weight)
        assert factors.quadratic(delta).value == pytest.approx(_exact(model, batches, name, delta), rel=1e-9)
        assert factors.trace().value == pytest.approx(gauss_newton_traces(model, batches, [name])[name].value, rel=1e-9)


def test_exact_for_one_prediction_of_any_net():
    model = dense.smooth_mlp()
    batches = [(torch.randn(1, 3).double(), torch.tensor([1]))]
    for name, factors in kronecker_factors(model, batches, ["0", "2", "4"]).items():
        delta = torch.randn_like(model[int(name)].weight)
        assert factors.quadratic(delta).value == pytest.approx(_exact(model, batches, name, delta), rel=1e-9)


class TiedHead(nn.Module):
    """Looks tokens up in a table and multiplies by the same table: a language model's first and last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.table(tokens)).mean(1))


def test_a_tied_table_has_the_forms_of_both_its_uses():
    model, apart = TiedHead().double(), TiedHead().double()
    apart.load_state_dict(model.state_dict())
    apart.head.weight = nn.Parameter(model.table.weight.detach().clone())
    batches = [(torch.randint(0, 7, (5, 4)), torch.randint(0, 7, (5,)))]
    delta = torch.randn(7, 3).double()
    tied = kronecker_factors(model, batches)["table.weight"]
    each = kronecker_factors(apart, batches, ["table", "head"])
    assert tied.quadratic(delta).value == pytest.approx(sum(f.quadratic(delta).value for f in each.values()), rel=1e-9)
    assert tied.trace().value == pytest.approx(sum(f.trace().value for f in each.values()), rel=1e-9)


def test_only_an_approximation_when_inputs_and_gradients_go_together():
    model = dense.relu_mlp()
    batches = [(torch.randn(20, 3).double() * 3, torch.randint(0, 3, (20,)))]
    delta = torch.randn_like(model[2].weight)
    found = kronecker_factors(model, batches, ["2"])["2"].quadratic(delta)
    assert not found.exact
    assert abs(found.value / _exact(model, batches, "2", delta) - 1) > 0.01


class OnePosition(nn.Module):
    """Every layer sees exactly one position, so that one sample is exact for convolutions as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), groups=2)
        self.up = nn.ConvTranspose2d(6, 4, (1, 1), groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.up(torch.tanh(self.conv(x)))).flatten(1))


def test_layout_of_grouped_dilated_and_transposed_kernels():
    model = OnePosition().double()
    batches = [(torch.randn(1, 4, 3, 3).double(), torch.tensor([2]))]
    for name, factors in kronecker_factors(model, batches, ["conv", "up", "head"]).items():
        for _ in range(3):
            delta = torch.randn_like(getattr(model, name).weight)
            # Groups are blocks of their own in K-FAC: move one group at a time.
            half = len(delta) // 2 if name != "head" else len(delta)
            for rows in (slice(0, half), slice(half, None)):
                part = torch.zeros_like(delta)
                part[rows] = delta[rows]
                exact = _exact(model, batches, name, part)
                assert factors.quadratic(part).value == pytest.approx(exact, rel=1e-9, abs=1e-15), name


def test_shared_weights_follow_the_expand_formula():
    conv = nn.Conv1d(2, 3, 2, bias=False)
    model = nn.Sequential(conv, nn.Flatten(), nn.Tanh(), nn.Linear(9, 3)).double()
    x, y = torch.randn(5, 2, 4).double(), torch.randint(0, 3, (5,))
    factors = kronecker_factors(model, [(x[:2], y[:2]), (x[2:], y[2:])], ["0"])["0"]
    seen = torch.cat([x[:, :, at : at + 2].transpose(1, 2).flatten(1) for at in range(3)])  # (positions, k·in)
    right = seen.T @ seen / 15
    out = conv(x)
    logits = model[1:](out)
    p = logits.softmax(-1).detach()
    half = torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)
    left = torch.zeros(3, 3).double()
    for column in range(3):
        delta = torch.autograd.grad(logits, out, half[:, :, column], retain_graph=True)[0]
        left += torch.einsum("nct,ndt->cd", delta, delta) / 5
    displacement = torch.randn_like(conv.weight)
    matrix = displacement.transpose(1, 2).flatten(1)
    expected = float((matrix @ right @ matrix.T @ left).trace())
    assert factors.quadratic(displacement).value == pytest.approx(expected, rel=1e-9)


def test_embeddings_keep_only_their_counts():
    model = nn.Sequential(nn.Embedding(6, 3), nn.Flatten(0, 1), nn.Linear(3, 4, bias=False)).double()
    tokens = torch.tensor([[1], [1], [4]])
    batches = [(tokens, torch.tensor([0, 2, 3]))]
    factors = kronecker_factors(model, batches, ["0"])["0"]
    unseen = torch.zeros(6, 3).double()
    unseen[[0, 2, 3, 5]] = 1.0
    assert factors.quadratic(unseen).value == 0
    assert factors.trace().value == pytest.approx(gauss_newton_traces(model, batches, ["0"])["0"].value, rel=1e-9)


def test_sampled_outputs_give_a_standard_error_that_covers():
    model = dense.smooth_mlp()
    batches = [(torch.randn(30, 3).double(), torch.randint(0, 3, (30,)))]
    delta = torch.randn_like(model[2].weight)
    exact = kronecker_factors(model, batches, ["2"])["2"].quadratic(delta)
    sampled = kronecker_factors(model, batches, ["2"], probes=100, exact_columns=1)["2"].quadratic(delta)
    assert exact.stderr == 0 < sampled.stderr
    assert abs(sampled.value - exact.value) < 4 * sampled.stderr


def test_attention_projections_are_refused_by_name():
    with pytest.raises(ModelError, match=r"mix.in_proj_weight.*no Kronecker factors"):
        kronecker_factors(dense.Attending(), [torch.tensor([[0, 1]])], ["mix.in_proj_weight"])
