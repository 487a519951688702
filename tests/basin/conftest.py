"""A small net that has learned something."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geoquant.training import fit_classifier_
from nets import blobs


@pytest.fixture(scope="session")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)
    )
    fit_classifier_(model, *blobs(3000, 1), epochs=4, seed=0, learning_rate=1e-2)
    return model.eval()
