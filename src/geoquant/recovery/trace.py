"""What happens to the loss, the weights and their levels while a quantized model is trained?

At a few points of the run, on one batch that stays the same: the loss of the latent weights f(w) and of the quantized
ones f(Q(w)); whether the step that the straight-through gradient takes leads inwards, towards the float weights; how
far both are from the float weights, in steps of the grid; how many weights oscillate. The picture behind it (the
low-loss basin, arXiv:2606.09012): rounding left the basin of the float weights, f(Q(w)) falls before f(w) moves, and
what brings it down is a gradient felt at Q(w) that points into the basin. A trace shows this for one run on one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoquant import storage
from geoquant.errors import FileFormatError, MissingExtraError
from geoquant.recovery.latents import Latents
from geoquant.recovery.objective import Objective
from geoquant.recovery.sharding import whole

TRACE_VERSION = 1
TRACE_FILE = "trace.json"


@dataclass(frozen=True)
class TracePoint:
    """One look at a run.

    Attributes:
        step: optimizer steps done.
        latent_loss: f(w), of the latent weights as they are.
        quantized_loss: f(Q(w)).
        inward: ⟨−∇f(Q(w)), u⟩ with u the unit vector from Q(w) to the float weights: positive where a descent step
            leads inwards.
        inward_share: the same over ‖∇f(Q(w))‖, a cosine.
        latent_distance: root mean square of w − float, in steps of the grid.
        quantized_distance: root mean square of Q(w) − float, in steps.
        oscillating: share of weights whose level oscillates.
        frozen: share of weights that are held.
        training_loss: of the last training step, 0 before the first.
    """

    step: int
    latent_loss: float
    quantized_loss: float
    inward: float
    inward_share: float
    latent_distance: float
    quantized_distance: float
    oscillating: float
    frozen: float
    training_loss: float


@dataclass(frozen=True)
class Trace:
    """The looks at one run, in the order of steps.

    >>> Trace().points
    ()
    """

    points: tuple[TracePoint, ...] = ()

    def save(self, path: Path | str) -> None:
        """Write the trace as JSON, atomically."""
        storage.write_document(path, "trace", TRACE_VERSION, {"points": [asdict(point) for point in self.points]})

    @staticmethod
    def load(path: Path | str) -> Trace:
        """Read what `save` wrote; `FileFormatError` when it is damaged."""
        _, content = storage.read_document(Path(path), "trace", TRACE_VERSION)
        try:
            return TypeAdapter(Trace).validate_python(content)
        except ValidationError as error:
            raise FileFormatError(f"{path} does not hold a valid trace: {error.errors()[0]['msg']}") from error

    def write_scalars(self, folder: Path | str, prefix: str = "recovery") -> None:
        """Write the trace as TensorBoard scalars.

        Raises:
            MissingExtraError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "TensorBoard scalars need the extra 'tensorboard': pip install 'geoquant[tensorboard]'"
            ) from error
        with SummaryWriter(str(folder)) as writer:
            for point in self.points:
                for name, value in asdict(point).items():
                    if name != "step":
                        writer.add_scalar(f"{prefix}/{name}", value, point.step)


class Tracer:
    """Looks at a run.

    Args:
        latents: the prepared model.
        objective: the loss.
        batch: on which to look.
        river: a direction per weight (name → tensor) that is removed from "inwards": along the river of the float
            trajectory the basin has no wall.
    """

    def __init__(
        self,
        latents: Latents,
        objective: Objective,
        batch: Any,
        river: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._latents, self._objective, self._batch = latents, objective, batch
        self._river = river

    def look(self, step: int, training_loss: float = 0.0) -> TracePoint:
        """Measure one point; gradients are gone afterwards, everything else is as it was."""
        with _statistics_kept(self._latents.model):
            latent_loss = self._latent_loss()
            quantized_loss, gradients = self._slope()
        with torch.no_grad():
            latents = {name: self._latents.latent(name) for name in self._latents.weights}
            quantized = {name: each.round(latents[name])[0] for name, each in self._latents.weights.items()}
            inward, share = self._inward(quantized, gradients)
            oscillating, frozen = self._unrest()
            return TracePoint(
                step,
                latent_loss,
                quantized_loss,
                inward,
                share,
                self._distance(latents),
                self._distance(quantized),
                oscillating,
                frozen,
                training_loss,
            )

    @torch.no_grad()
    def _latent_loss(self) -> float:
        self._latents.bypass_(True)
        try:
            return float(self._objective(self._latents.model, self._batch))
        finally:
            self._latents.bypass_(False)

    def _slope(self) -> tuple[float, dict[str, Tensor]]:
        with torch.enable_grad():
            loss = self._objective(self._latents.model, self._batch)
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: self._latents.gradient(name).clone() for name in self._latents.weights}
        for parameter in self._latents.model.parameters():
            parameter.grad = None
        return float(loss.detach()), gradients

    def _inward(self, quantized: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> tuple[float, float]:
        towards = {name: self._latents.start[name] - weight for name, weight in quantized.items()}
        if self._river is not None:
            along = {name: self._river.get(name, torch.zeros_like(each)) for name, each in towards.items()}
            share = _inner(towards, along) / max(_inner(along, along), 1e-300)
            towards = {name: each - share * along[name] for name, each in towards.items()}
        length, steepness = math.sqrt(_inner(towards, towards)), math.sqrt(_inner(gradients, gradients))
        inward = -_inner(gradients, towards) / length if length else 0.0
        return inward, inward / steepness if steepness else 0.0

    def _distance(self, weights: Mapping[str, Tensor]) -> float:
        total = count = 0.0
        for name, each in self._latents.weights.items():
            step = each.spread(whole(each.steps()))
            away = torch.where(step == 0, 0.0, (weights[name] - self._latents.start[name]) / step)
            total += float(away.double().square().sum())
            count += away.numel()
        return math.sqrt(total / count)

    def _unrest(self) -> tuple[float, float]:
        seen = [each.oscillation for each in self._latents.weights.values() if each.oscillation is not None]
        count = max(1, sum(each.frozen.numel() for each in seen))
        return sum(each.oscillating() for each in seen) / count, sum(int(each.frozen.sum()) for each in seen) / count


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((each.double() * b[name].double()).sum()) for name, each in a.items())


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Put the running statistics of batch norms back afterwards."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    saved = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)
