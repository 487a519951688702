"""Laws of every sensitivity predictor; a newcomer adds one class and inherits every test."""

from __future__ import annotations

import numpy as np
import torch

from geoquant.sensitivity import Predictor, Subject


def state_bytes(model: torch.nn.Module) -> dict[str, bytes]:
    """Return the raw bytes of every tensor, so that −0.0 and 0.0 differ."""
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def check_predictor(predictor: Predictor, subject: Subject) -> None:
    """Hold `predictor` to the laws of its protocol."""
    before, modes = state_bytes(subject.model), [module.training for module in subject.model.modules()]
    expected = predictor.estimated_cost(subject)
    table = predictor.measure(subject)
    damage, stderr = np.array(table.damage), np.array(table.stderr)

    assert state_bytes(subject.model) == before, "the model changed"
    assert [module.training for module in subject.model.modules()] == modes, "a training flag changed"
    assert all(parameter.grad is None for parameter in subject.model.parameters()), "gradients were left behind"
    assert damage.shape == stderr.shape == (len(subject.sites), len(subject.grids))
    assert table.sites == tuple(site.name for site in subject.sites)
    assert table.grids == tuple(str(grid) for grid in subject.grids)
    assert np.isfinite(damage).all()
    assert np.isfinite(stderr).all()
    assert (stderr >= 0).all()
    assert expected / 2 <= table.cost <= 2 * expected
    assert table.predictor == predictor.name
    assert predictor.measure(subject) == table, "not deterministic"
    narrow, wide = damage[:, 0], damage[:, -1]
    assert (narrow >= wide).all(), "2 bits should never look better than 8"
