"""Diagonals against dense float64 matrices."""

from __future__ import annotations

import pytest
import torch

from geoquant.errors import GeoquantError
from geoquant.geometry import gauss_newton_diagonal, gauss_newton_traces, hessian_diagonal


def test_every_diagonal_of_a_relu_net_is_exact(mixed):
    found = hessian_diagonal(mixed.model, mixed.batches, ["stem", "grouped", "padded", "up", "line", "head", "up.bias"])
    for name, diagonal in found.items():
        parameter = name if name.endswith("bias") else f"{name}.weight"
        expected = mixed.hessian.diagonal()[mixed.parameters.span(parameter)].view_as(diagonal.value)
        assert diagonal.exact, name
        torch.testing.assert_close(diagonal.value, expected, rtol=1e-9, atol=1e-13)
        assert not diagonal.stderr.any()


def test_the_diagonal_sums_to_the_trace(attending):
    names = ["embed", "up", "down", "head"]
    diagonals = gauss_newton_diagonal(attending.model, attending.batches, names)
    traces = gauss_newton_traces(attending.model, attending.batches, names)
    for name in names:
        assert float(diagonals[name].value.sum()) == pytest.approx(traces[name].value, rel=1e-9)


@pytest.mark.parametrize("own", [False, True])
def test_probed_entries_are_within_their_standard_errors(smooth, own):
    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    diagonal = hessian_diagonal(smooth.model, smooth.batches, ["0"], probes=300, loss=loss if own else "auto")["0"]
    expected = smooth.hessian.diagonal()[smooth.parameters.span("0.weight")].view_as(diagonal.value)
    score = (diagonal.value - expected) / diagonal.stderr
    assert not diagonal.exact
    assert float(score.abs().max()) < 4.5
    assert 0.6 < float(score.square().mean().sqrt()) < 1.6  # neither too proud nor too shy


def test_sampled_columns_and_loose_parameters_carry_standard_errors(attending):
    found = gauss_newton_diagonal(
        attending.model, attending.batches, ["mix.in_proj_weight", "up"], probes=300, exact_columns=4
    )
    for name, parameter in (("mix.in_proj_weight", "mix.in_proj_weight"), ("up", "up.weight")):
        expected = attending.gauss_newton.diagonal()[attending.parameters.span(parameter)]
        score = (found[name].value.flatten() - expected) / found[name].stderr.flatten().clamp(min=1e-12)
        assert not found[name].exact
        assert float(score.abs().max()) < 5


def test_one_probe_is_refused(smooth):
    with pytest.raises(GeoquantError, match="at least 2"):
        hessian_diagonal(smooth.model, smooth.batches, probes=1)
