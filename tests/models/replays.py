"""What the tests of replays share: every site changed in turn, against full forwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from geoquant.models import (
    Replay,
    find_sites,
    get_weight,
    inference,
    predict,
    temporarily,
)


def check_exact(model: nn.Module, batch: Any, forward: Any = None, partial: bool = True) -> Replay:
    """Compare replay and full forward bit by bit with each site changed in turn, in two orders."""
    with inference(model):
        expected = predict(model, batch, forward)
    replay = Replay(model, batch, forward)
    assert torch.equal(replay.reference, expected)
    assert replay.exact_prefix is partial
    sites = find_sites(model)
    for site in (*sites, *reversed(sites)):
        changed = -0.7 * get_weight(model, site).clone()
        with temporarily(model, site, changed):
            with inference(model):
                expected = predict(model, batch, forward)
            result = replay.run(site)
        assert torch.equal(result, expected), site.name
        assert torch.equal(replay.run(site), replay.reference), site.name
    return replay


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
