"""What is the trace of each layer's Hessian block, for all layers in one pass per probe?

Plain answer (Hutchinson): with random signs v on all layers at once, v_l·(Hv)_l has the mean tr H_ll. Its
variance counts every off-diagonal entry of those rows, and hundreds to thousands of probes are needed for
5 %. Better answer, the default: H = G + R. tr G_ll is exact at the price of one backward per class, and
tr R_ll is zero wherever the network is piecewise affine in that layer's weights, which autograd's graph
shows; so for ReLU nets every trace is exact, without a probe. Elsewhere only R is probed, at the same
price per probe as H, and each piece of the data gets probes of its own. The second derivative is
autograd's: the kinks of ReLU contribute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geoquant.errors import DataError, GeoquantError
from geoquant.geometry.evidence import Estimate, RunningMean
from geoquant.geometry.gauss_newton import EXACT_COLUMNS, GaussNewtonTraces, estimate_of, trace_gauss_newton
from geoquant.geometry.hvp import GRAPH_COST, PRODUCT_COST, Part, batch_product
from geoquant.geometry.objective import Chosen, Loss, Objective, make_objective
from geoquant.geometry.probes import signs
from geoquant.models import Forward
from geoquant.progress import task

# Probes that share one forward and backward of each batch; between rounds the stopping rule is asked.
ROUND = 8

TraceMethod = Literal["auto", "hutchinson"]


def hessian_traces(
    model: nn.Module,
    batches: Sequence[Any],
    sites: Chosen = None,
    *,
    forward: Forward | None = None,
    loss: str | Loss = "auto",
    probes: int = 8,
    seed: int = 0,
    relative_stderr: float | None = None,
    method: TraceMethod = "auto",
    exact_columns: int = EXACT_COLUMNS,
) -> dict[str, Estimate]:
    """Return tr(H_l) of each layer's diagonal block of the Hessian of the mean loss over `batches`.

    Args:
        model: any module; studied in eval mode, left as it was. Frozen and tied parameters are fine.
        batches: batches with targets, or without (then the divergence from the model's own predictions).
        sites: sites, names of layers or parameters, or name → parameter; every parameter when None.
        forward: how to call the model.
        loss: ``"auto"``, ``"cross_entropy"``, ``"kl"``, ``"squared_error"``, or a function
            ``loss(model, batch) -> scalar mean`` (plain probes only).
        probes: the largest number of random directions, at least 2.
        seed: of the directions.
        relative_stderr: stop earlier, once every standard error is at most this share of its trace.
        method: ``"auto"`` (Gauss-Newton part first, remainder probed where it may exist) or
            ``"hutchinson"`` (plain probes of H, as HAWQ-V2 does, arXiv 1911.03852).
        exact_columns: see `gauss_newton_traces`.

    Returns:
        name → trace per prediction, in nats per squared weight unit; the standard error is over probes,
        for these batches.

    Raises:
        DataError: no batch, targets that do not fit, or no prediction that counts.
        LayerNameError: a name matches nothing.
        GeoquantError: fewer than 2 probes.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    >>> _ = [nn.init.eye_(parameter) for parameter in model.parameters()]
    >>> data = [(torch.tensor([[1.0, 1.0]]).double(), torch.tensor([0]))]
    >>> for name, trace in hessian_traces(model, data).items():
    ...     print(name, trace)
    0.weight 1 (exact: gauss-newton norms; piecewise affine in this layer)
    2.weight 1 (exact: gauss-newton norms; piecewise affine in this layer)
    """
    if probes < 2:
        raise GeoquantError(f"probes={probes} gives no standard error; use at least 2")
    objective = make_objective(model, batches, sites, loss=loss, forward=forward)
    if method == "hutchinson" or objective.criterion is None:
        found = _plain(objective, probes, seed, relative_stderr)
    else:
        _, found = both_traces(
            objective, probes=probes, seed=seed, relative=relative_stderr, exact_columns=exact_columns
        )
    return {name: found[place] for name, place in zip(objective.names, objective.position, strict=True)}


def _plain(objective: Objective, probes: int, seed: int, relative: float | None) -> list[Estimate]:
    mean, cost = probe_traces(objective, "hessian", probes, seed, _settled_at(relative))
    return [
        Estimate(value, stderr, samples=mean.count, cost=cost, method="hutchinson")
        for value, stderr in zip(mean.mean.tolist(), mean.stderr.tolist(), strict=True)
    ]


def both_traces(
    objective: Objective,
    *,
    probes: int,
    seed: int,
    relative: float | None = None,
    exact_columns: int = EXACT_COLUMNS,
) -> tuple[list[Estimate], list[Estimate]]:
    """Return Gauss-Newton and Hessian traces by parameter, in the order of ``objective.unique``."""
    gauss = trace_gauss_newton(objective, probes=probes, seed=seed, exact_columns=exact_columns)
    # A loss whose residual vanishes (divergence from itself) has no remainder at all.
    criterion = objective.criterion
    free = criterion is not None and criterion.name == "kl"
    places = range(len(gauss.affine))
    curved = [not (affine or free) for affine in gauss.affine]
    whole = [_exact(gauss, place, free) for place in places]
    if any(curved):
        part, cost = _probe_remainder(objective, gauss, curved, probes, seed, relative)
        whole = [_sum(gauss, part, place, gauss.cost + cost) if curved[place] else whole[place] for place in places]
    return [estimate_of(gauss, place) for place in places], whole


def _probe_remainder(
    objective: Objective,
    gauss: GaussNewtonTraces,
    curved: Sequence[bool],
    probes: int,
    seed: int,
    relative: float | None,
) -> tuple[RunningMean, float]:
    keep = torch.tensor(curved)

    def settled(mean: RunningMean) -> bool:
        stderr = (mean.stderr.square() + gauss.stderr.square()).sqrt()
        return relative is not None and bool((stderr <= relative * (mean.mean + gauss.value).abs())[keep].all())

    return probe_traces(objective, "remainder", probes, seed, settled)


def _exact(gauss: GaussNewtonTraces, place: int, free: bool) -> Estimate:
    known = estimate_of(gauss, place)
    note = "the residual is zero" if free else "piecewise affine in this layer"
    return Estimate(known.value, known.stderr, known.exact, known.samples, known.cost, known.method, note=note)


def _sum(gauss: GaussNewtonTraces, part: RunningMean, place: int, cost: float) -> Estimate:
    value = float(gauss.value[place] + part.mean[place])
    stderr = float((gauss.stderr[place].square() + part.stderr[place].square()).sqrt())
    return Estimate(value, stderr, samples=part.count, cost=cost, method="gauss-newton + probed remainder")


def _settled_at(relative: float | None) -> Callable[[RunningMean], bool]:
    return lambda mean: relative is not None and mean.settled(relative)


def probe_traces(
    objective: Objective,
    part: Part,
    probes: int,
    seed: int,
    settled: Callable[[RunningMean], bool],
    *,
    shared: bool = False,
) -> tuple[RunningMean, float]:
    """Average v_l·(Mv)_l over random signs v, for every parameter at once.

    Every piece of the data gets signs of its own. The variance of a sum over B pieces is then the sum of
    their variances, ‖M‖²/B when the pieces have much the same matrix, instead of ‖M‖² with signs that the
    pieces share: fewer probes at the same price.

    Args:
        objective: what is differentiated.
        part: which matrix M.
        probes: at most this many.
        seed: of the signs.
        settled: asked between rounds of `ROUND` probes whether to stop.
        shared: use the same signs on every piece, as the textbook does; for comparison.

    Returns:
        the running mean (parameters,) per prediction, and the cost in forward-equivalents.
    """
    mean, cost = RunningMean(), 0.0
    with objective.studied(), task("Hutchinson probes", probes) as advance:
        while mean.count < probes and not (mean.count > 1 and settled(mean)):
            chosen = range(mean.count, min(mean.count + ROUND, probes))
            for draw in _round(objective, part, chosen, seed, shared):
                mean.add(draw)
                advance()
            cost += GRAPH_COST + PRODUCT_COST * len(chosen)
    return mean, cost


def _round(objective: Objective, part: Part, chosen: range, seed: int, shared: bool) -> Tensor:
    """Return v_l·(Mv)_l for each chosen probe and parameter, over all batches: (probes, parameters)."""
    sums = torch.zeros(len(chosen), len(objective.unique), dtype=torch.float64)
    count = 0.0
    for index, batch in enumerate(objective.batches):
        product, size = batch_product(objective, batch, part)
        count += size
        for row, probe in enumerate(chosen):
            vector = signs(objective.unique, seed, probe, 0 if shared else index)
            sums[row] += dots(vector, product(vector))
    if count == 0:
        raise DataError("no prediction to average over: every position is masked")
    return sums / count


def dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product of each pair of tensors, (pairs,), float64 on the CPU.

    >>> dots([torch.ones(3)], [torch.arange(3.0)])
    tensor([3.], dtype=torch.float64)
    """
    return torch.stack([(a.double() * b.double()).sum().cpu() for a, b in zip(left, right, strict=True)])
