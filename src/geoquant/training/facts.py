"""What is remembered of the measurements of a run, for the schedule to decide on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from geoquant.training.measuring import MeasuredNoise
from geoquant.training.numerics import step_share
from geoquant.training.optimizer_state import local
from geoquant.training.products import LowPrecisionLayer
from geoquant.training.ranks import agreed, is_sharded
from geoquant.training.schedules.protocol import LayerFacts

DECAY = 0.9  # of the running mean of ‖g‖² over steps
KEPT = 0.5  # share of the old noise beside a new measurement


class Facts:
    """Running means of gradient norms, and the last measurements.

    Attributes:
        initial: the facts when the first gradients had been seen.
        coupling: row i, column j: ‖H_ij u_j‖; None before the first measurement.
        noise: row j, column i: what rounding layer j does to the gradient of layer i; None before the first
            measurement.
    """

    def __init__(self, layers: Sequence[LowPrecisionLayer]) -> None:
        self._layers = layers
        self._squares: Tensor | None = None
        self._shares: list[float] | None = None
        self.noise: list[list[float]] | None = None
        self.coupling: list[list[float]] | None = None
        self.initial: dict[str, LayerFacts] = {}

    def squares(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return ‖g_i‖² of the local parts, (layers,), 0 where there is none, without waiting for the device."""
        present = [local(g) for g in gradients if g is not None]
        norms = iter(torch._foreach_norm(present) if present else ())
        device = present[0].device if present else torch.device("cpu")
        each = [torch.zeros((), device=device) if g is None else next(norms).float() for g in gradients]
        return torch.stack(each).square()

    def see(self, squares: Tensor) -> None:
        """Take the squared gradient norms of a step into the running mean."""
        if self._squares is None:
            self._squares = squares
            self.initial = self.layers()
        else:
            self._squares = DECAY * self._squares + (1 - DECAY) * squares

    def set_curvature(self, columns: dict[int, list[float]]) -> None:
        """Replace columns of the coupling by those that are finite, which they are not where a run has blown up."""
        columns = {j: column for j, column in columns.items() if all(map(math.isfinite, column))}
        if not columns:
            return
        if self.coupling is None:
            self.coupling = [[0.0] * len(self._layers) for _ in self._layers]
        for j, column in columns.items():
            for i, value in enumerate(column):
                self.coupling[i][j] = value
        self._complete_initial()

    def set_noise(self, found: MeasuredNoise) -> None:
        """Take a measurement into the means, relative to its own whole gradient.

        Layers take turns, and gradients shrink meanwhile: only what is relative can be compared. What rounding all
        layers together did to a gradient then sets the level of what each of them is believed to do to it: in a deep
        net most of that is from long ago.
        """
        energy = sum(value**2 for value in found.exact)
        if not 0 < energy < math.inf:
            return
        shares = [value**2 / energy for value in found.exact]
        if self.noise is None:
            self._shares, self.noise = shares, [[0.0] * len(found.exact) for _ in self._layers]
            self._blend(found.rows, energy, 0.0)
        else:
            self._shares = _mixed(self._shares or shares, shares, KEPT)
            self._blend(found.rows, energy, KEPT)
        self._level([error / energy for error in found.together])

    def _blend(self, rows: dict[int, list[float]], energy: float, kept: float) -> None:
        assert self.noise is not None
        for j, row in rows.items():
            self.noise[j] = _mixed(self.noise[j], [value / energy for value in row], kept)

    def _level(self, together: list[float]) -> None:
        assert self.noise is not None
        squares = [step_share(layer.precision.level("forward")) ** 2 for layer in self._layers]
        for i, seen in enumerate(together):
            believed = sum(row[i] * square for row, square in zip(self.noise, squares, strict=True))
            if believed > 0 and seen > 0:
                for row in self.noise:
                    row[i] *= (seen / believed) ** (1 - KEPT)

    def coupling_matrix(self) -> tuple[tuple[float, ...], ...] | None:
        """Return the coupling as a frozen value."""
        return None if self.coupling is None else tuple(map(tuple, self.coupling))

    def layers(self, steps: int = 1) -> dict[str, LayerFacts]:
        """Return the facts of every layer after `steps` steps, the same on every rank."""
        weights = [local(layer.weight) for layer in self._layers]
        shared = is_sharded(self._layers[0].weight)
        how = "sum" if shared else "mean"
        if self._squares is None:
            return {layer.name: LayerFacts(layer.weight.numel()) for layer in self._layers}
        with torch.no_grad():
            sizes = torch.stack(torch._foreach_norm(weights)).double().square().tolist()
            spans = [2 * float(w.abs().amax()) if w.numel() else 0.0 for w in weights]
        squares, sizes = agreed(self._squares.double().tolist(), how), agreed(sizes, how)
        spans, flops = agreed(spans, "max"), agreed([float(layer.count.products) for layer in self._layers])
        return {
            layer.name: LayerFacts(
                layer.weight.numel(),
                flops[i] / steps,
                math.sqrt(squares[i]),
                math.sqrt(sizes[i]),
                spans[i],
                None if self.coupling is None else self.coupling[i][i],
                None if self._shares is None else math.sqrt(self._shares[i]),
                None if self.noise is None else tuple(self.noise[i]),
            )
            for i, layer in enumerate(self._layers)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {
            "squares": None if self._squares is None else self._squares.tolist(),
            "noise": self.noise,
            "shares": self._shares,
            "coupling": self.coupling,
            "initial": {name: asdict(facts) for name, facts in self.initial.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was."""
        device = self._layers[0].weight.device
        squares = state["squares"]
        self._squares = None if squares is None else torch.tensor(squares, device=device)
        self.coupling = state["coupling"]
        self.noise, self._shares = state["noise"], state["shares"]
        self.initial = {name: _facts(values) for name, values in state["initial"].items()}

    def _complete_initial(self) -> None:
        if self.initial and next(iter(self.initial.values())).curvature is None:
            self.initial = self.layers()


def _mixed(old: Sequence[float], new: Sequence[float], kept: float) -> list[float]:
    return [kept * a + (1 - kept) * b for a, b in zip(old, new, strict=True)]


def _facts(values: dict[str, Any]) -> LayerFacts:
    noise = values["noise"]
    return LayerFacts(**{**values, "noise": None if noise is None else tuple(noise)})
