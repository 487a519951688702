"""How often is the descent condition right about a step?

The condition (`geoquant.bounds.descent`) promises that a step goes down while the exact gradient is longer than the
error of the one that was used. Where it promises nothing, a rise of the loss is predicted, weakly. `Practice` looks
at single steps: the loss of the step's own batch before and after, in float32, the gradient in few bits beside the
exact one, and, where curvature was measured, what the layer-wise and the coupled rule say of the weights' rounding.

Where the answer stops: the promise is for θ − ηg with η ≤ 1/L; momentum and adaptive rates are outside, and their
steps are counted like others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from geoquant.bounds import coupled_rule, own_layer_rule
from geoquant.training.adaptive import AdaptivePrecision
from geoquant.training.measuring import fixed_buffers
from geoquant.training.noise import Noise
from geoquant.training.numerics import level, round_rows


@dataclass
class Practice:
    """Counts of what was predicted of steps and what they did.

    Attributes:
        promised: steps that the condition promised to go down: (that did, that rose).
        unpromised: steps that it promised nothing of: (that went down, that rose).
        rules: layers by what the layer-wise and the coupled rule allowed: ``both``, ``neither``, ``layer-wise only``,
            ``coupled only``.
        ratios: ‖e‖/‖∇f‖ of each step looked at, where it is finite.
    """

    promised: list[int] = field(default_factory=lambda: [0, 0])
    unpromised: list[int] = field(default_factory=lambda: [0, 0])
    rules: dict[str, int] = field(default_factory=dict)
    ratios: list[float] = field(default_factory=list)

    @contextmanager
    def step(self, precision: AdaptivePrecision, loss: Callable[[], Tensor]) -> Iterator[None]:
        """Look at the optimizer step inside the block; gradients in few bits lie in ``.grad`` when it begins.

        Args:
            precision: of the run.
            loss: on the batch of the step.
        """
        layers = list(precision.layers.values())
        low = [layer.weight.grad for layer in layers]
        with precision.float32(), fixed_buffers(precision.model):
            before = loss()
            found = torch.autograd.grad(before, [layer.weight for layer in layers], allow_unused=True)
        exact = [torch.zeros_like(layer.weight) if g is None else g for layer, g in zip(layers, found, strict=True)]
        errors = [exact_one if g is None else g - exact_one for g, exact_one in zip(low, exact, strict=True)]
        ratio = float(_norm(errors) / _norm(exact).clamp(min=1e-30))
        self._compare_rules(precision, exact)
        yield
        with torch.no_grad(), precision.float32(), fixed_buffers(precision.model):
            rose = not float(loss()) <= float(before.detach())  # a loss that is no number has risen
        if math.isfinite(ratio):
            self.ratios.append(ratio)
        (self.promised if ratio < 1 else self.unpromised)[rose] += 1

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {
            "promised": list(self.promised),
            "unpromised": list(self.unpromised),
            "rules": dict(self.rules),
            "ratios": list(self.ratios),
        }

    def _compare_rules(self, precision: AdaptivePrecision, exact: list[Tensor]) -> None:
        coupling = precision.moment().coupling
        if coupling is None:
            return
        layers, norms = list(precision.layers.values()), [float(g.norm()) for g in exact]
        if not all(map(math.isfinite, norms)):
            return
        weights = [layer.weight.detach() for layer in layers]
        moves = [
            float((round_rows(weight, level(layer.precision.weights), "nearest", Noise(0)) - weight).norm())
            for layer, weight in zip(layers, weights, strict=True)
        ]
        own = own_layer_rule([coupling[i][i] for i in range(len(layers))], norms, moves)
        for alone, together in zip(own, coupled_rule(coupling, norms, moves), strict=True):
            name = {(True, True): "both", (True, False): "layer-wise only", (False, True): "coupled only"}
            key = name.get((alone, together), "neither")
            self.rules[key] = self.rules.get(key, 0) + 1


def _norm(tensors: list[Tensor]) -> Tensor:
    total: Tensor = torch.stack([each.detach().norm() for each in tensors]).norm()
    return total
