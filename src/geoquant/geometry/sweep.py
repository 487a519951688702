"""One batch, sent back to every layer in many directions: what the Gauss-Newton measures share.

A direction is a vector ε per prediction; what is sent back is S·ε with SSᵀ the Hessian of the loss in the
outputs. Over all columns of the identity the squares of what arrives add up to the Gauss-Newton matrix
exactly; over random signs they do so on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.geometry.affine import Structure, refuse_hidden, structure_of
from geoquant.geometry.objective import Objective, Scored
from geoquant.geometry.per_sample import Recorder, Use, owned_by_samples, pull_back, recording
from geoquant.geometry.probes import signs

# Gradients at layer outputs held at a time, in numbers; more directions at once share the unfolding of inputs.
HELD = 1 << 24


@dataclass(frozen=True, eq=False)
class Arrival:
    """What came back to the calls that use one parameter: deltas (directions, *output shape) for each call."""

    place: int
    parameter: nn.Parameter
    uses: list[Use]
    deltas: list[Tensor]


@dataclass(frozen=True, eq=False)
class Sweep:
    """One batch run forward and ready to be sent back. Open inside ``objective.studied()``.

    Attributes:
        objective: what is differentiated.
        scored: the outputs of the batch.
        recorder: the layer calls seen on the way.
        structure: what the graph says of each parameter.
        covered: per parameter, whether per-sample gradients are at hand: every use was recorded, and every
            recorded row belongs to one sample.
    """

    objective: Objective
    scored: Scored
    recorder: Recorder
    structure: Structure
    covered: tuple[bool, ...]

    @property
    def samples(self) -> int:
        """Samples in the batch."""
        return len(self.scored.outputs)

    @property
    def loose(self) -> list[int]:
        """Places of the parameters that are not covered."""
        return [place for place, known in enumerate(self.covered) if not known]

    def enumerable(self, columns: int) -> bool:
        """Whether a sample has at most `columns` outputs."""
        return self.scored.outputs[0].numel() <= columns

    def visited(self, enumerated: bool) -> list[bool]:
        """Say for which parameters the answer is exact: unused ones, and covered ones if columns are enumerated."""
        return [
            known and (enumerated or uses == 0) for known, uses in zip(self.covered, self.structure.uses, strict=True)
        ]

    def columns(self) -> Iterator[Tensor]:
        """Yield, for every output of a sample, the direction that is 1 there in all samples."""
        flat = torch.zeros_like(self.scored.outputs).flatten(1)
        for column in range(flat.shape[1]):
            direction = flat.clone()
            direction[:, column] = 1
            yield direction.view_as(self.scored.outputs)

    def signs(self, probes: int, seed: int, batch: int) -> Iterator[Tensor]:
        """Yield `probes` directions of random signs, new ones for each batch."""
        for probe in range(probes):
            yield signs([self.scored.outputs], seed, probe, batch)[0]

    def arrivals(self, directions: Iterator[Tensor]) -> Iterator[tuple[int, list[Arrival]]]:
        """Send `directions` back in groups that fit into memory; yield the size of each group and what arrived."""
        together = max(1, HELD // max(1, self.recorder.width))
        group: list[list[Tensor | None]] = []
        for direction in directions:
            group.append(pull_back(self.scored.outputs, self.recorder, self.scored.half(direction)))
            if len(group) == together:
                yield len(group), self._gathered(group)
                group = []
        if group:
            yield len(group), self._gathered(group)

    def _gathered(self, group: list[list[Tensor | None]]) -> list[Arrival]:
        found = []
        for place, parameter in enumerate(self.objective.unique):
            calls = [call for call in self.recorder.of(parameter) if group[0][call] is not None]
            if self.covered[place] and calls:
                deltas = [torch.stack([delta for row in group if (delta := row[call]) is not None]) for call in calls]
                found.append(Arrival(place, parameter, [self.recorder.uses[call] for call in calls], deltas))
        return found

    def whole_gradients(self, places: list[int], direction: Tensor) -> list[Tensor | None]:
        """Return the gradient of ⟨S·direction, outputs⟩ over the whole batch for parameters that are not covered."""
        chosen = [self.objective.unique[place] for place in places]
        sent = self.scored.half(direction)
        return list(torch.autograd.grad(self.scored.outputs, chosen, sent, retain_graph=True, allow_unused=True))


def sweep(objective: Objective, batch: Any) -> Sweep:
    """Run `batch` forward, recording what its layers see."""
    with recording(objective.model, objective.unique) as recorder:
        scored = objective.scored(batch)
    structure = structure_of(scored.outputs, objective.unique)
    if structure.opaque:
        refuse_hidden(scored.outputs, objective.unique)
    owned = owned_by_samples(scored.outputs, recorder)
    covered = tuple(
        uses == 0
        or _is_covered(recorder.of(parameter), uses, owned, parameter.numel() * len(scored.outputs), structure)
        for parameter, uses in zip(objective.unique, structure.uses, strict=True)
    )
    return Sweep(objective, scored, recorder, structure, covered)


def _is_covered(calls: list[int], uses: int, owned: list[bool], numbers: int, structure: Structure) -> bool:
    if structure.mixes_samples or len(calls) != uses or not all(owned[call] for call in calls):
        return False
    # Several uses need whole gradients, sample by sample; large tables are better sampled.
    return uses == 1 or numbers <= HELD
