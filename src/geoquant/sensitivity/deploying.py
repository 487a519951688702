"""What is measured on whole quantized models: how a predictor gets one, and how far it is from the float model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from geoquant.evaluation import kl_per_sample
from geoquant.grids import Grid
from geoquant.models import get_weight, inference, predict, prediction_mask, set_weight_
from geoquant.sensitivity.protocol import Subject

Deploy = Callable[[tuple[Grid, ...]], nn.Module]
"""From a grid per site to a quantized model of its own, through the pipeline that will deploy it."""


def round_to_nearest(subject: Subject, grids: Sequence[Grid]) -> nn.Module:
    """Return a copy of the model with every site of the subject rounded to nearest."""
    model = copy.deepcopy(subject.model)
    for site, grid in zip(subject.sites, grids, strict=True):
        matrix = site.matrix(get_weight(model, site)).float()
        set_weight_(model, site, site.restore(grid.quantize(matrix).dequantize()))
    return model


def divergences(subject: Subject, model: nn.Module, wanted: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return KL to the float predictions per sample and the predictions in it, batch by batch."""
    found = []
    with inference(model):
        for batch, reference in zip(subject.batches, wanted, strict=True):
            logits = predict(model, batch, subject.forward)
            found.append(kl_per_sample(reference, logits, prediction_mask(batch, reference)))
    return found
