"""What is the loss like here, measured while training goes on?

Everything comes from one small batch (the *probe*): one Hessian-vector product for the curvature of all layers, one
more for a column of the coupling between layers, two gradients for what low precision does to the gradient. Curvature
is a power iteration that goes on from measurement to measurement: all layers move at once, each along its own vector
with a random sign, so that on average layer i's Rayleigh quotient sees its own Hessian block only.

Measured in eval mode (batch norm and dropout are fixed functions) and in float32; gradients in ``.grad`` are not
touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.errors import ModelError
from geoquant.geometry.hvp import scalar_product
from geoquant.geometry.objective import studied
from geoquant.geometry.plain import PlainBatchNorm
from geoquant.training.accounting import LayerCount
from geoquant.training.noise import scrambled
from geoquant.training.products import LowPrecisionLayer

Loss = Callable[[], Tensor]
SAMPLES = 32


@contextmanager
def suspended(layers: Sequence[LowPrecisionLayer]) -> Iterator[None]:
    """Compute in float32, and count nothing."""
    for layer in layers:
        layer.suspended = True
    try:
        yield
    finally:
        for layer in layers:
            layer.suspended = False


@contextmanager
def uncounted(layers: Sequence[LowPrecisionLayer]) -> Iterator[None]:
    """Compute as always, and count nothing."""
    kept = [layer.count for layer in layers]
    for layer in layers:
        layer.count = LayerCount()
    try:
        yield
    finally:
        for layer, count in zip(layers, kept, strict=True):
            layer.count = count


class LastBatch:
    """Remembers the first samples of what the model was last called with, and has a loss for them without labels.

    The loss is cross-entropy with labels drawn from the model's own predictions. Its expected Hessian is the
    Gauss-Newton matrix of the cross-entropy on those inputs, whatever their labels (Martens, arXiv:1412.1193, section
    6).
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.model, self.seed, self.draws = model, seed, 0
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def remember(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the inputs; a forward pre-hook."""
        if torch.is_grad_enabled():
            self.inputs = tuple(_first(each) for each in args), {name: _first(each) for name, each in kwargs.items()}

    def __call__(self) -> Tensor:
        """Return the loss.

        Raises:
            ModelError: the model was not called yet, or does not give logits.
        """
        if self.inputs is None:
            raise ModelError("nothing can be measured before the model was called once; give probe=, a loss on a batch")
        args, kwargs = self.inputs
        outputs = self.model(*args, **kwargs)
        logits = getattr(outputs, "logits", outputs)
        if not isinstance(logits, Tensor) or logits.dim() < 2:
            raise ModelError("the model gives no logits to measure curvature with; give probe=, a loss on a batch")
        rows = logits.flatten(0, -2).float()
        self.draws += 1
        generator = torch.Generator().manual_seed(scrambled(self.seed, self.draws) >> 1)
        labels = torch.multinomial(rows.detach().softmax(-1).cpu(), 1, generator=generator)
        return F.cross_entropy(rows, labels.view(-1).to(rows.device))


def _first(value: Any) -> Any:
    return value[:SAMPLES].detach() if isinstance(value, Tensor) and value.dim() else value


class Meter:
    """Measures with a probe what schedules ask for.

    Attributes:
        vectors: layer → the direction of its power iteration, a unit tensor of the weight's shape.
        column: which layer's column of the coupling is measured next.
    """

    def __init__(self, model: nn.Module, layers: Sequence[LowPrecisionLayer], probe: Loss, seed: int) -> None:
        self.model, self.layers, self.probe, self.seed = model, layers, probe, seed
        self.vectors: dict[str, Tensor] = {}
        self.turns, self.column = 0, 0

    @property
    def weights(self) -> list[Tensor]:
        """The weights that are differentiated, one for each layer."""
        return [layer.weight for layer in self.layers]

    def curvature(self) -> list[float]:
        """Return κ_i of every layer, from one Hessian-vector product."""
        moves = self._moves()
        signs = self._signs()
        with self._product() as product:
            images = product([sign * move for sign, move in zip(signs, moves, strict=True)])
        found = []
        for layer, move, sign, image in zip(self.layers, moves, signs, images, strict=True):
            found.append(abs(float((move * image).sum())))
            norm = image.norm()
            if norm > 0:
                self.vectors[layer.name] = sign * image / norm
        return found

    def coupling(self, whole: bool) -> dict[int, list[float]]:
        """Return columns j ↦ (‖H_ij u_j‖)_i: all of them, or the next one in turn.

        Each costs one product; the graph that they share is built once.
        """
        moves = self._moves()
        columns = range(len(moves)) if whole else [self.column % len(moves)]
        found = {}
        with self._product() as product:
            for j in columns:
                images = product([move if i == j else torch.zeros_like(move) for i, move in enumerate(moves)])
                found[j] = [float(image.norm()) for image in images]
                if found[j][j] > 0:
                    self.vectors[self.layers[j].name] = images[j] / found[j][j]
        self.column = (columns[-1] + 1) % len(moves)
        return found

    def noise(self) -> tuple[list[float], list[float]]:
        """Return ‖e_i‖ and ‖∇f_i‖: the gradient in few bits less the exact one, and the exact one, per layer."""
        exact = self.gradients(low=False)
        low = self.gradients(low=True)
        return [float((a - b).norm()) for a, b in zip(low, exact, strict=True)], [float(g.norm()) for g in exact]

    def gradients(self, low: bool) -> Sequence[Tensor]:
        """Return the probe's gradients, in few bits as the layers are now, or exact."""
        with self._studied(uncounted if low else suspended), self._repeatable():
            found = torch.autograd.grad(self.probe(), self.weights, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, found, strict=True)]

    def loss(self) -> float:
        """Return the probe's loss in float32."""
        with self._studied(suspended), self._repeatable():
            return float(self.probe().detach())

    @contextmanager
    def _studied(self, how: Callable[[Sequence[LowPrecisionLayer]], Any]) -> Iterator[None]:
        with studied(self.model, self.weights), PlainBatchNorm(), how(self.layers):  # type: ignore[arg-type]
            yield

    @contextmanager
    def _repeatable(self) -> Iterator[None]:
        """Let a probe that draws labels draw the same ones again."""
        draws = self.probe.draws if isinstance(self.probe, LastBatch) else 0
        yield
        if isinstance(self.probe, LastBatch):
            self.probe.draws = draws

    @contextmanager
    def _product(self) -> Iterator[Callable[[Sequence[Tensor]], list[Tensor]]]:
        with self._studied(suspended):
            yield scalar_product(self.probe(), self.weights)  # type: ignore[arg-type]

    def _moves(self) -> list[Tensor]:
        for index, (layer, weight) in enumerate(zip(self.layers, self.weights, strict=True)):
            if layer.name not in self.vectors:
                generator = torch.Generator().manual_seed(scrambled(self.seed, index) >> 1)
                move = torch.randn(weight.shape, generator=generator).to(weight)
                self.vectors[layer.name] = move / move.norm()
        return [self.vectors[layer.name] for layer in self.layers]

    def _signs(self) -> list[float]:
        self.turns += 1
        bits = [scrambled(self.seed + 1, self.turns * len(self.layers) + i) for i in range(len(self.layers))]
        return [1.0 if bit & 1 else -1.0 for bit in bits]
