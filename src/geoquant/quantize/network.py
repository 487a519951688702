"""Which codes, scales, norms and biases together make the quantized network answer as the float one does?

Network-wise distillation: minimise KL(float ‖ quantized) of the predictions on the calibration batches, no
labels needed, over the codes and scales of all layers and the free parameters (norms, biases), which cost no bits.
It sees how errors of different layers add up and cancel, which no layer's or block's own error shows. It begins at
the codes that a layerwise rounding found. Its limits: it fits these batches, so keep some data aside to judge it, and
every step is a forward and a backward of the whole network. The family is that of network-wise
reconstruction in BRECQ (arXiv:2102.05426, section 4), with the end-to-end scales of EfficientQAT (arXiv:2407.11062).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.evaluation import kl_per_sample
from geoquant.grids import QuantizedMatrix
from geoquant.models import Forward, Site, evaluating, other_tensors, predict, prediction_mask
from geoquant.progress import task
from geoquant.quantize.learning import Caller, LearnedModel, learn_


@dataclass(frozen=True)
class NetworkTuning:
    """Network-wise distillation with its settings.

    Attributes:
        steps: of Adam, one calibration batch each.
        codes: learning rate of the places of weights between levels, in gaps between levels.
        scales: learning rate of scales, relative.
        free: learning rate of norms and biases.
        neighbours: whether each weight may only go to one of the two levels around it, in the float model's grid cell.
    """

    steps: int = 300
    codes: float = 0.02
    scales: float = 1e-3
    free: float = 1e-3
    neighbours: bool = False

    def __call__(
        self,
        reference: nn.Module,
        model: nn.Module,
        sites: Sequence[Site],
        matrices: Mapping[str, QuantizedMatrix],
        batches: Sequence[Any],
        forward: Forward | None = None,
        seed: int = 0,
    ) -> dict[str, QuantizedMatrix]:
        """Improve the quantized `model` in place; return the codes of all sites.

        Args:
            reference: the float model.
            model: a copy of it with the weights of `matrices` and corrected norms.
            sites: all sites.
            matrices: codes by parameter name.
            batches: calibration.
            forward: how to call the model.
            seed: of the order of batches.
        """
        with evaluating(reference), torch.no_grad():
            wanted = [predict(reference, batch, forward).clone() for batch in batches]
        learned = LearnedModel(model, reference, sites, matrices, free_parameters(model, sites), self.neighbours)
        caller = Caller(model, forward)
        order = _order(len(batches), self.steps, seed)

        def loss(step: int) -> Tensor:
            index = order[step]
            logits = caller.with_tensors(learned.tensors(), batches[index])
            each, count = kl_per_sample(wanted[index], logits, prediction_mask(batches[index], logits))
            return (each * count).sum() / count.sum()

        @torch.no_grad()
        def error() -> float:
            pairs = zip(batches, wanted, strict=True)
            return sum(_total_divergence(predict(model, batch, forward), logits, batch) for batch, logits in pairs)

        with task("distilling", self.steps) as advance, evaluating(model):
            finished = learn_(learned, loss, error, self.steps, (self.codes, self.scales, self.free), advance)
        return {**matrices, **finished}


def _total_divergence(logits: Tensor, wanted: Tensor, batch: Any) -> float:
    each, count = kl_per_sample(wanted, logits, prediction_mask(batch, logits))
    return float((each * count).sum())


def _order(count: int, steps: int, seed: int) -> list[int]:
    """Return which of `count` things each step takes: all of them, shuffled, again and again."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-steps // count)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)]).tolist()[:steps]


def free_parameters(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    """Return the names of the floating-point parameters that are no site's weight; tied ones once.

    >>> from geoquant.models import find_sites
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> free_parameters(model, find_sites(model))
    ['0.bias', '1.weight', '1.bias']
    """
    others = other_tensors(model, tuple(sites))
    return [name for name, parameter in model.named_parameters() if name in others and parameter.is_floating_point()]
