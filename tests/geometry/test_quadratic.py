"""Quadratic forms along given displacements against dense float64 matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geometry import dense
from geoquant.errors import LayerNameError, ModelError
from geoquant.geometry import displacement_gram, quadratic_form
from geoquant.models import find_sites


def _displacement(case, names):
    torch.manual_seed(3)
    delta = {name: torch.randn_like(case.parameters.items[f"{name}.weight"]) for name in names}
    flat = torch.zeros_like(case.parameters.flat)
    for name in names:
        flat[case.parameters.span(f"{name}.weight")] = delta[name].detach().flatten()
    return delta, flat


@pytest.mark.parametrize(("net", "names"), [("mixed", ["stem", "up", "head"]), ("attending", ["embed", "up", "head"])])
@pytest.mark.parametrize("part", ["hessian", "gauss_newton"])
def test_joint_shares_and_alone(net, names, part, request):
    case = request.getfixturevalue(net)
    matrix = case.hessian if part == "hessian" else case.gauss_newton
    delta, flat = _displacement(case, names)
    found = quadratic_form(case.model, case.batches, delta, part=part, alone=True)
    assert found.joint.exact
    assert found.joint.value == pytest.approx(float(flat @ matrix @ flat), rel=1e-9)
    assert sum(found.shares.values()) == pytest.approx(found.joint.value, rel=1e-9)
    for name in names:
        span = case.parameters.span(f"{name}.weight")
        assert found.shares[name] == pytest.approx(float(flat[span] @ (matrix @ flat)[span]), rel=1e-8)
        assert found.alone[name].value == pytest.approx(float(flat[span] @ matrix[span, span] @ flat[span]), rel=1e-8)


def test_the_gram_matrix_keeps_every_pair(attending):
    names = ["embed", "up", "head"]
    delta, flat = _displacement(attending, names)
    gram = displacement_gram(attending.model, attending.batches, delta)
    for row, first in enumerate(names):
        for column, second in enumerate(names):
            a, b = attending.parameters.span(f"{first}.weight"), attending.parameters.span(f"{second}.weight")
            expected = float(flat[a] @ attending.gauss_newton[a, b] @ flat[b])
            assert float(gram[row, column]) == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_it_predicts_the_change_of_a_quadratic_loss_exactly():
    layer = nn.Linear(3, 2, bias=False).double()
    x = torch.randn(5, 3).double()
    batches = [(x, layer(x).detach())]  # at the minimum: no first-order term
    delta = {"weight": torch.randn(2, 3).double()}
    form = quadratic_form(layer, batches, delta, loss="squared_error").joint.value
    with torch.no_grad():
        layer.weight += delta["weight"]
        after = 0.5 * (layer(x) - batches[0][1]).square().sum(1).mean()
    assert float(after) == pytest.approx(form / 2, rel=1e-9)


def test_names_may_be_those_of_sites(mixed):
    sites = find_sites(mixed.model)
    delta = {"up": torch.randn_like(mixed.model.up.weight)}
    by_site = quadratic_form(mixed.model, mixed.batches, delta, sites).joint.value
    assert by_site == quadratic_form(mixed.model, mixed.batches, delta).joint.value


def test_bad_displacements_say_what_is_wrong(mixed):
    with pytest.raises(ModelError, match="has shape"):
        quadratic_form(mixed.model, mixed.batches, {"head": torch.zeros(1)})
    with pytest.raises(LayerNameError):
        quadratic_form(mixed.model, mixed.batches, {"nowhere": torch.zeros(1)})
    tied = dense.Attending(tied=True)
    delta = {"embed": torch.zeros(5, 4), "head": torch.zeros(5, 4)}
    with pytest.raises(ModelError, match="tied"):
        quadratic_form(tied, [torch.tensor([[0, 1]])], delta)
