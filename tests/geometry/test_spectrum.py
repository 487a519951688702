"""Eigenvalues and densities against dense eigendecompositions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoquant.errors import GeoquantError
from geoquant.geometry.lanczos import Lanczos, extreme_eigenvalues
from geoquant.geometry.spectrum import spectral_density, top_eigenvalues


def _symmetric(values: torch.Tensor) -> torch.Tensor:
    basis = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
    return basis * values @ basis.T


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 12))
def test_a_full_run_finds_every_eigenvalue_of_every_operator_of_the_stack(seed, size):
    torch.manual_seed(seed)
    spectra = torch.randn(3, size, dtype=torch.float64)
    matrices = torch.stack([_symmetric(row) for row in spectra])
    start = torch.randn(3, size, dtype=torch.float64)
    space = Lanczos(lambda rows: (matrices @ rows.unsqueeze(-1)).squeeze(-1), start)
    space.run(size)
    for member in range(3):
        torch.testing.assert_close(space.ritz(member).values, spectra[member].sort().values, rtol=1e-6, atol=1e-8)


def test_a_low_rank_operator_ends_the_krylov_space_without_inventing_zeros():
    matrix = _symmetric(torch.tensor([3.0, 2.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    space = Lanczos(lambda rows: rows @ matrix, torch.randn(1, 6, dtype=torch.float64))
    space.run(6)
    assert space.exhausted
    torch.testing.assert_close(
        space.ritz(0).values, torch.tensor([0.0, 2.0, 3.0], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_orthogonality_survives_a_spectrum_that_ruins_plain_lanczos():
    values = torch.logspace(0, -12, 60, dtype=torch.float64)
    values[0] = 1e3
    matrix = _symmetric(values)
    found = extreme_eigenvalues(
        lambda rows: rows @ matrix, torch.randn(1, 60, dtype=torch.float64), count=5, tolerance=1e-10, max_steps=60
    )
    torch.testing.assert_close(found.values[0], values.sort(descending=True).values[:5], rtol=1e-6, atol=1e-9)


def test_residuals_bound_the_distance_to_an_eigenvalue():
    values = torch.linspace(1.0, 2.0, 80, dtype=torch.float64)
    matrix = _symmetric(values)
    found = extreme_eigenvalues(
        lambda rows: rows @ matrix, torch.randn(1, 80, dtype=torch.float64), tolerance=0.0, max_steps=6
    )
    assert found.residuals[0, 0] > 1e-6  # not converged, and says so
    assert (values - found.values[0, 0]).abs().min() <= found.residuals[0, 0]


@pytest.mark.parametrize("part", ["hessian", "gauss_newton"])
def test_top_eigenvalues_of_a_net(smooth, part):
    matrix = smooth.hessian if part == "hessian" else smooth.gauss_newton
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:3]
    found = top_eigenvalues(smooth.model, smooth.batches, count=3, part=part, tolerance=1e-10)
    assert [estimate.value for estimate in found] == pytest.approx(expected.tolist(), rel=1e-6)


def test_one_layer_gives_its_own_block(smooth):
    expected = torch.linalg.eigvalsh(smooth.block(smooth.hessian, "2.weight"))[-1]
    found = top_eigenvalues(smooth.model, smooth.batches, ["2"], tolerance=1e-10)[0]
    assert found.value == pytest.approx(float(expected), rel=1e-6)
    assert found.cost > 0


def test_moments_of_the_density_are_traces_of_powers(smooth):
    density = spectral_density(smooth.model, smooth.batches, probes=24, steps=8)
    for power, expected in ((0, len(smooth.hessian)), (1, float(smooth.hessian.trace()))):
        moment = density.moment(power)
        assert abs(moment.value - expected) <= 4 * moment.stderr + 1e-6
    square = density.moment(2)
    assert abs(square.value - float(smooth.hessian.square().sum())) <= 4 * square.stderr


def test_the_smoothed_density_integrates_to_one_and_sits_on_the_spectrum(smooth):
    density = spectral_density(smooth.model, smooth.batches, probes=4, steps=20)
    grid, curve, stderr = density.curve(points=2000)
    assert float(torch.trapezoid(curve, grid)) == pytest.approx(1.0, abs=0.02)
    assert bool((stderr >= 0).all())
    eigenvalues = torch.linalg.eigvalsh(smooth.hessian)
    assert float(density.nodes.max()) == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    assert float(density.nodes.min()) == pytest.approx(float(eigenvalues[0]), rel=1e-6)


def test_bad_calls_say_what_is_wrong(smooth):
    with pytest.raises(GeoquantError, match="at least 2 probes"):
        spectral_density(smooth.model, smooth.batches, probes=1)
    with pytest.raises(GeoquantError, match="nonzero start"):
        Lanczos(lambda rows: rows, torch.zeros(1, 2))
    with pytest.raises(GeoquantError, match="nonzero start"):
        Lanczos(lambda rows: rows, torch.full((1, 2), math.nan))
