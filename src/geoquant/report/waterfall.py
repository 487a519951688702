"""How much of a plan's output error does each layer make, and how far are bound, estimate and observation apart?

The three tiers of `geoquant.bounds` on a few calibration inputs. Per-layer contributions are sizes of first-order
displacements, which add as vectors: their sum exceeds the estimate by what cancels, and the waterfall shows that too.
Where the answer stops: a few inputs, first order per layer. A tier that a model does not allow says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from geoquant.bounds import error_bound, error_estimate, error_observed
from geoquant.errors import DataError, GeoquantError
from geoquant.models import evaluating, logits_of
from geoquant.models.calling import TARGET_KEYS
from geoquant.plan import Plan
from geoquant.progress import task
from geoquant.quantize import quantize

INPUTS = 4
# Half width of the boxes as a share of the root mean square of the inputs.
SHARE = 0.01
# Symbols of the bound's zonotopes times numbers of one input: time grows with both, seconds to a minute per input.
ROOM = 1 << 18
_PREFIX = "inner."


@dataclass(frozen=True)
class Tier:
    """One claim on the size of the output change.

    Attributes:
        name: "error_bound", "error_estimate" or "error_observed".
        values: one per input; infinite where nothing is promised, empty where it could not be had.
        method: how.
        note: what a reader must know, such as why it is missing.
    """

    name: str
    values: tuple[float, ...]
    method: str
    note: str = ""

    @property
    def mean(self) -> float | None:
        """Return the mean over the inputs, None where there is none."""
        return sum(self.values) / len(self.values) if self.values else None


@dataclass(frozen=True)
class Waterfall:
    """Contributions of the layers and the three tiers, for one plan.

    Attributes:
        label: of the plan.
        radius: half width of the boxes around the inputs, in input units.
        contributions: layer → size of its first-order displacement of the output, mean over the inputs.
        tiers: bound, estimate, observed.
    """

    label: str
    radius: float
    contributions: Mapping[str, float]
    tiers: tuple[Tier, Tier, Tier]

    @property
    def cancelled(self) -> float:
        """Return what the layers' sizes exceed the estimate by; their displacements partly cancel."""
        return sum(self.contributions.values()) - (self.tiers[1].mean or 0.0)

    @property
    def finite(self) -> list[float]:
        """Return the means of the tiers that a logarithmic axis can show."""
        means = [tier.mean for tier in self.tiers]
        return [mean for mean in means if mean is not None and mean > 0 and math.isfinite(mean)]

    def gap(self, tier: Tier) -> float | None:
        """Return how many times the observed change a tier is, in the mean."""
        seen = self.tiers[2].mean
        return tier.mean / seen if tier.mean is not None and seen else None


def measure_waterfall(
    model: nn.Module, plan: Plan, batch: Any, label: str, *, inputs: int = INPUTS, radius: float | None = None
) -> Waterfall:
    """Quantize a copy of `model` by `plan` and measure the three tiers of the largest output change.

    Args:
        model: the float model.
        plan: made for it.
        batch: calibration data: a tensor, an (inputs, targets) pair, or a mapping with one tensor besides targets and
            an attention mask of ones.
        label: of the plan.
        inputs: the first so many of the batch.
        radius: half width of the boxes in input units; 1 % of the inputs' root mean square when None. Token ids have 0.

    Raises:
        DataError: the batch is none of these forms.

    >>> import torch
    >>> from geoquant.plan import uniform_plan
    >>> net = nn.Sequential(nn.Linear(2, 2)).eval()
    >>> found = measure_waterfall(net, uniform_plan(net, "int4"), torch.ones(3, 2), "int4", radius=0.0)
    >>> abs(found.cancelled) < 1e-12, [tier.name for tier in found.tiers]
    (True, ['error_bound', 'error_estimate', 'error_observed'])
    """
    x, key = _tensor_input(batch)
    x = x[:inputs].detach()
    if not x.is_floating_point():
        radius = 0.0
    elif radius is None:
        radius = SHARE * float(x.double().square().mean().sqrt())
    pair = [_OneTensor(each, key) for each in (model, quantize(model, plan))]
    with evaluating(pair[0]), evaluating(pair[1]), task(f"error tiers of {label}", 3) as advance:
        bound = _bound(pair[0], pair[1], x, radius)
        advance()
        parts: dict[str, float] = {}
        estimate = _tier("error_estimate", lambda: _estimate(pair[0], pair[1], x, parts))
        advance()
        observed = _tier("error_observed", lambda: _observed(pair[0], pair[1], x, radius))
        advance()
    return Waterfall(label, radius, parts, (bound, estimate, observed))


class _OneTensor(nn.Module):
    """A model as a map from one tensor to its logits."""

    def __init__(self, inner: nn.Module, key: str | None) -> None:
        super().__init__()
        self.inner, self._key = inner, key

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.inner(x) if self._key is None else self.inner(**{self._key: x}))


def _tensor_input(batch: Any) -> tuple[Tensor, str | None]:
    """Return the one input tensor of a batch, and the keyword that it goes under."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch
    if isinstance(inputs, Tensor):
        return inputs, None
    if isinstance(inputs, Mapping):
        rest = {key: value for key, value in inputs.items() if key not in TARGET_KEYS}
        mask = rest.pop("attention_mask", None)
        if len(rest) == 1 and (mask is None or bool(mask.all())):
            ((key, value),) = rest.items()
            return value, key
    raise DataError("error tiers need batches with one input tensor, and no padding; this batch has more")


def _tier(name: str, measure: Callable[[], tuple[Tensor, str]]) -> Tier:
    try:
        values, method = measure()
    except (GeoquantError, RuntimeError, NotImplementedError) as error:
        return Tier(name, (), "", str(error).strip().partition("\n")[0])
    return Tier(name, tuple(values.tolist()), method)


def _bound(model: nn.Module, quantized: nn.Module, x: Tensor, radius: float) -> Tier:
    """Take the tightest theory that covers the model: pairs of zonotopes, else products of norms."""
    notes = []
    for method in ("zonotopes", "norms") if x.is_floating_point() else ("norms",):
        try:
            found = error_bound(model, quantized, x, radius, method=method, symbols=ROOM // max(x[0].numel(), 512))
        except (GeoquantError, RuntimeError) as error:
            notes.append(f"{method}: {str(error).strip().partition(chr(10))[0]}")
            continue
        if bool(found.values.isfinite().all()):
            return Tier("error_bound", tuple(found.values.tolist()), method)
        names = ", ".join(name.removeprefix(_PREFIX) for name in found.not_covered[:3])
        notes.append(f"{method}: no rule for {names}" if names else f"{method}: infinite")
    return Tier("error_bound", (), "", "; ".join(notes))


def _estimate(model: nn.Module, quantized: nn.Module, x: Tensor, parts: dict[str, float]) -> tuple[Tensor, str]:
    found = error_estimate(model, quantized, x)
    parts |= {name.removeprefix(_PREFIX): float(each.mean()) for name, each in found.contributions.items()}
    return found.values, found.method


def _observed(model: nn.Module, quantized: nn.Module, x: Tensor, radius: float) -> tuple[Tensor, str]:
    values = error_observed(model, quantized, x, radius)
    return values, "attack" if radius else "at the inputs"
