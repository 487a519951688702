"""How wrong is the quantized network: what holds for every input, what to expect, and what was seen?

Three claims on one quantity, the size of the output change f̂(x) − f(x), and the gaps between them:

- `error_bound` holds for every input of the stated boxes;
- `error_estimate` is first order: each layer's weight error is pushed through the real network by a
  Jacobian-vector product, which also says how much each layer contributes (a waterfall);
- `error_observed` is the largest change that was found.

Where the answer stops: all three speak of the two networks as functions, evaluated in float64; what a run in float32
adds is bounded by `differential_bound` with ``arithmetic="float32"``. The estimate is silent about kinks and about
second order, so it can lie on either side of what is observed. A gap factor compares with what a search found, which
may itself be too little.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geoquant.bounds.differential import differential_bound
from geoquant.bounds.search import attacked_error, change_size
from geoquant.bounds.trace import trace_functionals
from geoquant.errors import GeoquantError, ModelError

BOUND_METHODS = ("zonotopes", "intervals", "norms")


@dataclass(frozen=True)
class ErrorBound:
    """A size that no input of the boxes exceeds, in float64.

    Attributes:
        values: float64 (N,), one per box; infinite where something is not covered.
        method: which theory: "zonotopes", "intervals" or "norms".
        norm: which size: "largest" or "euclidean".
        not_covered: names of operations without a rule.
    """

    values: Tensor
    method: str
    norm: str
    not_covered: tuple[str, ...]


@dataclass(frozen=True)
class ErrorEstimate:
    """A first-order estimate at each input.

    Attributes:
        values: float64 (N,), the size of the sum of all layers' displacements.
        contributions: layer → float64 (N,), the size of that layer's displacement of the output. Displacements add as
            vectors, so sizes add up to at least the estimate.
        norm: which size: "largest" or "euclidean".
        method: "jacobian-vector product", or "central difference" where the model has none.
    """

    values: Tensor
    contributions: Mapping[str, Tensor]
    norm: str
    method: str


@dataclass(frozen=True)
class ErrorTiers:
    """The three tiers of one quantity.

    Attributes:
        bound: holds for every input of the boxes.
        estimate: first order at the centers.
        observed: float64 (N,), the largest change found in the boxes.
    """

    bound: ErrorBound
    estimate: ErrorEstimate
    observed: Tensor

    @property
    def bound_gap(self) -> Tensor:
        """Bound over observed, per input; 1 is perfect, infinite says nothing (or that no change was found)."""
        return self.bound.values / self.observed

    @property
    def estimate_gap(self) -> Tensor:
        """Estimate over observed, per input; below 1 the estimate was too small."""
        return self.estimate.values / self.observed


def error_bound(
    model: nn.Module,
    quantized: nn.Module,
    inputs: Tensor,
    radius: float = 0.0,
    *,
    method: str = "zonotopes",
    norm: str = "largest",
    symbols: int | None = None,
) -> ErrorBound:
    """Bound the output change for every input of the boxes |x − inputs[n]| ≤ radius.

    Args:
        model: the float model, in eval mode.
        quantized: the same structure with other weights.
        inputs: (N, …) centers; token ids with radius 0 and method "norms".
        radius: half width of the boxes, in input units.
        method: "zonotopes" (see `differential_bound`; the tightest), "intervals" (the same without symbols) or "norms"
            (see `trace_functionals`; over the ball around the box; covers attention and smooth activations).
        norm: size of the change, see `change_size`.
        symbols: cap for "zonotopes", see `differential_bound`.

    Raises:
        GeoquantError: an unknown method or norm.

    >>> double, triple = nn.Linear(1, 1, bias=False).eval(), nn.Linear(1, 1, bias=False).eval()
    >>> _ = nn.init.constant_(double.weight, 2.0), nn.init.constant_(triple.weight, 3.0)
    >>> bounds = [error_bound(double, triple, torch.ones(1, 1), 0.5, method=method) for method in BOUND_METHODS]
    >>> [round(bound.values.item(), 6) for bound in bounds]
    [1.5, 1.5, 1.5]
    """
    if method == "norms":
        change_size(torch.zeros(1, 1), norm)
        results = trace_functionals(model, quantized, inputs, radius * math.prod(inputs.shape[1:]) ** 0.5)
        # The largest output is at most the 2-norm, so one number serves both sizes.
        values = torch.tensor([result() for result in results], dtype=torch.float64)
        return ErrorBound(values, method, norm, results[0].not_covered)
    if method not in BOUND_METHODS:
        raise GeoquantError(f"the bound's method is one of {', '.join(BOUND_METHODS)}, got '{method}'")
    result = differential_bound(model, quantized, inputs, radius, symbols=symbols if method == "zonotopes" else 0)
    values = change_size(torch.maximum(-result.lower, result.upper), norm)
    return ErrorBound(values, method, norm, result.not_covered)


def error_estimate(model: nn.Module, quantized: nn.Module, inputs: Tensor, *, norm: str = "largest") -> ErrorEstimate:
    """Estimate the output change at each input to first order in the weight errors.

    Layer l's displacement is J_l·(ŵ_l − w_l), with J_l the Jacobian of the float network's output in that layer's
    tensors. It costs about three forwards per changed layer, in float64.

    Args:
        model: the float model, in eval mode.
        quantized: a model with the same parameter names and shapes.
        inputs: (N, …).
        norm: size of the change, see `change_size`.

    Raises:
        ModelError: the quantized model lacks a parameter.

    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).eval()
    >>> twin = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).eval()
    >>> with torch.no_grad():
    ...     for layer, weight in zip((*net, *twin), (2.0, 3.0, 2.5, 3.25), strict=True):
    ...         _ = layer.weight.fill_(weight)
    >>> estimate = error_estimate(net, twin, torch.ones(1, 1))     # 0.5·3 + 2·0.25; truly 0.5·0.25 more
    >>> round(estimate.values.item(), 6), {name: round(part.item(), 6) for name, part in estimate.contributions.items()}
    (2.0, {'0': 1.5, '1': 0.5})
    """
    exact = copy.deepcopy(model).double().eval().requires_grad_(False)
    moves = _weight_changes(model, quantized)
    x = inputs.double() if inputs.is_floating_point() else inputs
    displacements, methods = {}, set()
    for layer, move in moves.items():
        displacements[layer], method = _displacement(exact, move, x)
        methods.add(method)
    with torch.no_grad():
        nothing = torch.zeros_like(exact(x))
    total = sum(displacements.values(), nothing)
    parts = {layer: change_size(one, norm) for layer, one in displacements.items()}
    method = max(methods, default="jacobian-vector product", key=lambda name: name == "central difference")
    return ErrorEstimate(change_size(total, norm), parts, norm, method)


def _weight_changes(model: nn.Module, quantized: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return layer → tensor name → ŵ − w for every floating tensor that differs, tied ones once."""
    theirs = {**dict(quantized.named_parameters(remove_duplicate=False)), **dict(quantized.named_buffers())}
    changes: dict[str, dict[str, Tensor]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if name not in theirs or theirs[name].shape != tensor.shape:
            raise ModelError(f"the quantized model lacks {name} or holds it in another shape; compare like with like")
        change = theirs[name].detach().double() - tensor.detach().double()
        if bool(change.any()):
            changes.setdefault(name.rpartition(".")[0], {})[name] = change
    return changes


def _displacement(model: nn.Module, move: dict[str, Tensor], x: Tensor) -> tuple[Tensor, str]:
    """Differentiate the output along `move`, exactly where forward-mode rules exist."""
    start = {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name in move}

    def output(tensors: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(model, tensors, (x,))
        return result

    # Fused attention has no forward-mode derivative; its math form has.
    with torch.no_grad(), nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        try:
            tangent: Tensor = torch.func.jvp(output, (start,), (move,))[1]
            return tangent, "jacobian-vector product"
        except (NotImplementedError, RuntimeError):
            step = 1e-4
            ahead = output({name: tensor + step * move[name] for name, tensor in start.items()})
            behind = output({name: tensor - step * move[name] for name, tensor in start.items()})
            return (ahead - behind) / (2 * step), "central difference"


def error_observed(
    model: nn.Module,
    quantized: nn.Module,
    inputs: Tensor,
    radius: float = 0.0,
    *,
    norm: str = "largest",
    restarts: int = 2,
    steps: int = 40,
    seed: int = 0,
) -> Tensor:
    """Return the largest output change found in each box; float64 (N,). With radius 0, the change at each input.

    Args:
        model: the float model, in eval mode.
        quantized: the model that it is compared with.
        inputs: (N, …) centers.
        radius: half width of the boxes, in input units.
        norm: size of the change, see `change_size`.
        restarts: of the attack, see `attacked_error`.
        steps: of the attack.
        seed: of the attack's starting points.

    >>> double, triple = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(double.weight, 2.0), nn.init.constant_(triple.weight, 3.0)
    >>> [error_observed(double, triple, torch.ones(1, 1), radius).item() for radius in (0.0, 0.5)]
    [1.0, 1.5]
    """
    if radius:
        return attacked_error(model, quantized, inputs, radius, restarts=restarts, steps=steps, norm=norm, seed=seed)
    wide = [copy.deepcopy(one).double().eval() for one in (model, quantized)]
    x = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        return change_size(wide[1](x) - wide[0](x), norm)


def error_tiers(
    model: nn.Module,
    quantized: nn.Module,
    inputs: Tensor,
    radius: float = 0.0,
    *,
    method: str = "zonotopes",
    norm: str = "largest",
    seed: int = 0,
) -> ErrorTiers:
    """Put bound, estimate and observation of the same quantity side by side; arguments as in the three of them.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    >>> _ = [nn.init.ones_(layer.weight) for layer in (net[0], net[2])]
    >>> other = copy.deepcopy(net)
    >>> _ = other[0].weight.data.add_(0.01)
    >>> tiers = error_tiers(net, other, torch.ones(4, 2), 0.1)
    >>> bool((tiers.bound_gap >= 1).all())
    True
    """
    return ErrorTiers(
        error_bound(model, quantized, inputs, radius, method=method, norm=norm),
        error_estimate(model, quantized, inputs, norm=norm),
        error_observed(model, quantized, inputs, radius, norm=norm, seed=seed),
    )
