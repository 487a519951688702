"""The rounding model against real float32 and float64 sums, at sizes and orders that hurt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geoquant.bounds.outward import UNIT_FLOAT32, UNIT_FLOAT64, gamma, raised
from geoquant.errors import GeoquantError


@pytest.mark.parametrize("terms", [3, 64, 1000, 20_000])
@pytest.mark.parametrize("seed", range(3))
def test_float32_dot_products_stay_within_gamma_in_any_order(terms: int, seed: int):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=terms).astype(np.float32) * 10.0 ** rng.uniform(-3, 3, terms) for _ in range(2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    exact = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    allowed = gamma(terms, UNIT_FLOAT32) * math.fsum(abs(float(x) * float(y)) for x, y in zip(a, b, strict=True))
    products = a * b
    one_by_one = np.float32(0)
    for product in products:
        one_by_one = np.float32(one_by_one + product)
    for computed in (
        float(np.dot(a, b)),
        float(torch.tensor(a) @ torch.tensor(b)),
        float(one_by_one),
        float(products.sum()),
    ):
        assert abs(computed - exact) <= allowed


def test_the_bound_is_nearly_attained_by_a_sum_that_stagnates():
    # Adding halves of a last place to 1: every one is lost, the error is n·u.
    terms = np.full(1000, UNIT_FLOAT32, dtype=np.float32)
    total = np.float32(1)
    for term in terms:
        total = np.float32(total + term)
    lost = 1 + 1000 * UNIT_FLOAT32 - float(total)
    assert 0.99 * 1000 * UNIT_FLOAT32 <= lost <= gamma(1001, UNIT_FLOAT32) * (1 + 1000 * UNIT_FLOAT32)


def test_raised_sums_are_above_the_exact_sum():
    values = torch.rand(5000, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    computed = raised(values.sum(0), 5000)
    assert all(bound >= math.fsum(column) for bound, column in zip(computed.tolist(), values.T.tolist(), strict=True))
    assert torch.all(computed <= values.sum(0) * (1 + 2e-12))
    assert float(raised(torch.zeros((), dtype=torch.float64), 1)) > 0


def test_too_many_terms_have_no_bound():
    assert gamma(10**6, UNIT_FLOAT64) == pytest.approx(1e6 * UNIT_FLOAT64)
    with pytest.raises(GeoquantError, match="no error bound"):
        gamma(2**24, UNIT_FLOAT32)
