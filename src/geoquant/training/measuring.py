"""What is the loss like here, measured while training goes on?

Everything comes from one small batch (the *probe*): a Hessian-vector product for how a move of one layer turns the
gradient of all layers, gradients for what rounding one layer does to them. Layers take turns, one at each
measurement, so that measuring costs the same in a deep net; curvature is a power iteration that goes on from turn to
turn.

Measured in float32 and without dropout; gradients in ``.grad`` and running statistics are not touched. For curvature
batch norm is the fixed function of evaluation. For noise it normalizes by the batch, as training does: that makes a
layer's gradient small beside its errors, and looking at the fixed function would miss it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoquant.errors import ModelError
from geoquant.geometry.hvp import scalar_product
from geoquant.geometry.objective import studied
from geoquant.geometry.plain import PlainBatchNorm
from geoquant.training.accounting import LayerCount
from geoquant.training.noise import scrambled
from geoquant.training.numerics import step_share
from geoquant.training.precision import LayerPrecision
from geoquant.training.products import LowPrecisionLayer

Loss = Callable[[], Tensor]
SAMPLES = 32
FIRST_SWEEPS = 3  # power iterations at the first measurement; later ones go on from there


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


@contextmanager
def fixed_buffers(model: nn.Module) -> Iterator[None]:
    """Leave running statistics, and torch's generator, as they were."""
    kept = [buffer.clone() for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(model.buffers(), kept, strict=True):
                buffer.copy_(old)


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
        logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", outputs)
        if not isinstance(logits, Tensor) or logits.dim() < 2:
            raise ModelError("the model gives no logits to measure curvature with; give probe=, a loss on a batch")
        rows = logits.flatten(0, -2).float()
        self.draws += 1
        generator = torch.Generator().manual_seed(scrambled(self.seed, self.draws) >> 1)
        labels = torch.multinomial(rows.detach().softmax(-1).cpu(), 1, generator=generator)
        return F.cross_entropy(rows, labels.view(-1).to(rows.device))


def _squared_errors(low: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    return [float((a - b).norm()) ** 2 for a, b in zip(low, exact, strict=True)]


def _first(value: Any) -> Any:
    return value[:SAMPLES].detach() if isinstance(value, Tensor) and value.dim() else value


@dataclass(frozen=True)
class MeasuredNoise:
    """What rounding does to the probe's gradients.

    Attributes:
        exact: (layers,) ‖∇f_i‖ in float32.
        rows: layer j → (layers,) squared errors of the gradients when j is rounded alone, divided by its squared
            `step_share`, so that they hold for any level.
        together: (layers,) squared errors when all layers are in their bits, as they are now.
    """

    exact: list[float]
    rows: dict[int, list[float]]
    together: list[float]


class Meter:
    """Measures with a probe what schedules ask for.

    Attributes:
        vectors: layer → the direction of its power iteration, a unit tensor of the weight's shape.
        column: which layer's curvature is measured next.
        rounded: which layer is rounded alone next.
    """

    def __init__(self, model: nn.Module, layers: Sequence[LowPrecisionLayer], probe: Loss, seed: int) -> None:
        self.model, self.layers, self.probe, self.seed = model, layers, probe, seed
        self.vectors: dict[str, Tensor] = {}
        self.column, self.rounded, self.measured = 0, 0, False

    @property
    def weights(self) -> list[Tensor]:
        """The weights that are differentiated, one for each layer."""
        return [layer.weight for layer in self.layers]

    def curvature(self, whole: bool) -> dict[int, list[float]]:
        """Return columns j ↦ (‖H_ij u_j‖)_i for unit moves u_j of layer j alone: of all layers, or of the next in turn.

        u_j is turned towards the sharpest direction of the layer's own block each time, so column j's own entry grows
        to its largest eigenvalue. A column costs one product; the graph that they share is built once.
        """
        moves = self._moves()
        sweeps = 1 if self.measured else FIRST_SWEEPS
        columns = [*range(len(moves))] * sweeps if whole else [self.column % len(moves)]
        found = {}
        with self._product() as product:
            for j in columns:
                along = self.vectors[self.layers[j].name]
                images = product([along if i == j else torch.zeros_like(move) for i, move in enumerate(moves)])
                found[j] = torch.stack(torch._foreach_norm(images)).tolist()
                if 0 < found[j][j] < math.inf:
                    self.vectors[self.layers[j].name] = images[j] / found[j][j]
        self.column, self.measured = (columns[-1] + 1) % len(moves), True
        return found

    def noise(self, whole: bool) -> MeasuredNoise:
        """Round layers alone, all of them or the next in turn, and then all together."""
        exact = self.gradients(())
        turns = range(len(self.layers)) if whole else [self.rounded % len(self.layers)]
        rows = {}
        for j in turns:
            layer = self.layers[j]
            kept = layer.precision
            layer.precision = kept if not kept.exact else LayerPrecision.of("int8")
            try:
                share = step_share(layer.precision.level("forward"))
                rows[j] = [error / share**2 for error in _squared_errors(self.gradients((layer,)), exact)]
            finally:
                layer.precision = kept
        self.rounded = (turns[-1] + 1) % len(self.layers)
        together = _squared_errors(self.gradients(self.layers), exact)
        return MeasuredNoise([float(g.norm()) for g in exact], rows, together)

    def gradients(self, low: Sequence[LowPrecisionLayer]) -> Sequence[Tensor]:
        """Return the probe's gradients with the layers `low` in few bits as they are now, the others exact."""
        others = [layer for layer in self.layers if layer not in low]
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm) and module.training]
        with self._studied(others), uncounted(low), self._repeatable(), fixed_buffers(self.model):
            for norm in norms:
                norm.train()
            found = torch.autograd.grad(self.probe(), self.weights, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, found, strict=True)]

    def loss(self) -> float:
        """Return the probe's loss in float32."""
        with self._studied(self.layers), self._repeatable():
            return float(self.probe().detach())

    def state_dict(self) -> dict[str, Any]:
        """Return whose turn it is, and the vectors."""
        return {"turns": [self.column, self.rounded, self.measured], "vectors": dict(self.vectors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was."""
        self.column, self.rounded, self.measured = state["turns"]
        self.vectors = {name: vector.clone() for name, vector in state["vectors"].items()}

    @contextmanager
    def _studied(self, exact: Sequence[LowPrecisionLayer]) -> Iterator[None]:
        with studied(self.model, self.weights), PlainBatchNorm(), suspended(exact):  # type: ignore[arg-type]
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
        with self._studied(self.layers):
            yield scalar_product(self.probe(), self.weights)  # type: ignore[arg-type]

    def _moves(self) -> list[Tensor]:
        for index, (layer, weight) in enumerate(zip(self.layers, self.weights, strict=True)):
            if layer.name not in self.vectors:
                generator = torch.Generator().manual_seed(scrambled(self.seed, index) >> 1)
                move = torch.randn(weight.shape, generator=generator).to(weight)
                self.vectors[layer.name] = move / move.norm()
        return [self.vectors[layer.name] for layer in self.layers]
