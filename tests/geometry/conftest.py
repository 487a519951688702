"""Dense matrices are slow; each net's is computed once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from geometry import dense


@dataclass(frozen=True)
class Case:
    """A small net in float64 with data, its whole Hessian and its whole Gauss-Newton matrix."""

    parameters: dense.Parameters
    x: Tensor
    y: Tensor
    hessian: Tensor
    gauss_newton: Tensor

    @property
    def model(self) -> nn.Module:
        return self.parameters.model

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.x[:2], self.y[:2]), (self.x[2:], self.y[2:])]

    def block(self, matrix: Tensor, name: str) -> Tensor:
        span = self.parameters.span(name)
        return matrix[span, span]


def _case(model: nn.Module, x: Tensor, y: Tensor) -> Case:
    parameters = dense.Parameters(model)
    x = x.double() if x.is_floating_point() else x
    return Case(parameters, x, y, dense.hessian(parameters, x, y), dense.gauss_newton(parameters, x))


@pytest.fixture(scope="session")
def smooth() -> Case:
    torch.manual_seed(5)
    return _case(dense.smooth_mlp(), torch.randn(6, 3), torch.randint(0, 3, (6,)))


@pytest.fixture(scope="session")
def mixed() -> Case:
    torch.manual_seed(6)
    return _case(dense.Mixed(), torch.randn(5, 2, 6, 6), torch.randint(0, 3, (5,)))


@pytest.fixture(scope="session")
def attending() -> Case:
    torch.manual_seed(7)
    tokens = torch.tensor([[0, 1, 2], [3, 4, 4], [1, 1, 0]])
    model = dense.Attending(tied=False)
    with torch.no_grad():
        model.mix.in_proj_weight.mul_(2)
    return _case(model, tokens, torch.tensor([[1, 2, 0], [4, 4, 3], [1, 0, 2]]))
