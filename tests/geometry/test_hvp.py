"""Products with the Hessian and its two parts against dense float64 matrices."""

from __future__ import annotations

import pytest
import torch

from geoquant.geometry.hvp import hessian_vector_product, products
from geoquant.geometry.objective import make_objective
from geoquant.geometry.spectrum import flatten, unflatten


@pytest.mark.parametrize("net", ["smooth", "mixed", "attending"])
@pytest.mark.parametrize("part", ["hessian", "gauss_newton", "remainder"])
def test_products_agree_with_the_dense_matrix(net, part, request):
    case = request.getfixturevalue(net)
    matrix = {
        "hessian": case.hessian,
        "gauss_newton": case.gauss_newton,
        "remainder": case.hessian - case.gauss_newton,
    }[part]
    objective = make_objective(case.model, case.batches)
    vector = torch.randn(len(matrix), dtype=torch.float64)
    found = hessian_vector_product(objective, unflatten(vector, objective.unique), part)
    torch.testing.assert_close(flatten(found)[0], matrix @ vector, rtol=1e-9, atol=1e-12)


def test_chosen_parameters_give_their_own_block(smooth):
    objective = make_objective(smooth.model, smooth.batches, ["2"])
    block = smooth.block(smooth.hessian, "2.weight")
    columns = products(objective, [unflatten(column, objective.unique) for column in torch.eye(len(block)).double()])
    torch.testing.assert_close(torch.cat([flatten(column) for column in columns]), block, rtol=1e-9, atol=1e-12)


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    layer = torch.nn.Linear(2, 1, bias=False)
    objective = make_objective(layer, [torch.ones(3, 2)], loss=lambda model, batch: model(batch).mean())
    assert torch.equal(hessian_vector_product(objective, [torch.ones(1, 2)])[0], torch.zeros(1, 2))


def test_frozen_parameters_are_measured_and_stay_frozen(smooth):
    objective = make_objective(smooth.model, smooth.batches, ["0"])
    vector = [torch.ones_like(objective.unique[0])]
    before = hessian_vector_product(objective, vector)[0]
    smooth.model.requires_grad_(False)
    try:
        assert torch.equal(hessian_vector_product(objective, vector)[0], before)
        assert not any(parameter.requires_grad for parameter in smooth.model.parameters())
    finally:
        smooth.model.requires_grad_(True)
