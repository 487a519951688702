"""Which is the smallest model that loses no more than this, and who vouches for it?

Two questions, on two sets of data. The search bisects the budget: each step solves the allocation exactly, deploys the
plan as it would be deployed, and looks at the selection data. What it finds is chosen *because* it looked good
there, so these figures promise nothing. The certificate then looks at samples that took no part: with the stated
confidence the mean drop over the distribution that they come from is below its bound. If the plan fails, the next
larger budget is tried on the same samples; the error probability is shared out over all attempts beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from geoquant.arrays import Floats
from geoquant.bounds import Certificate
from geoquant.data import collect
from geoquant.errors import GeoquantError
from geoquant.models import Forward, batch_size
from geoquant.plan import Budget, Plan, allocate
from geoquant.plan.choices import make_choices
from geoquant.plan.solving import make_request
from geoquant.progress import task
from geoquant.search.certifying import Certifier
from geoquant.search.samples import Deploy, Metric, check_disjoint, pipeline, scores
from geoquant.sensitivity import Profile


@dataclass(frozen=True)
class Trial:
    """One step of the search.

    Attributes:
        plan: what was deployed.
        drop: mean drop of the metric on the selection data.
        stderr: of that mean; samples are paired.
        bound_estimate: about what the certificate would come to; no promise.
        passed: whether that is within what is allowed.
    """

    plan: Plan
    drop: float
    stderr: float
    bound_estimate: float
    passed: bool


@dataclass(frozen=True)
class Within:
    """The answer: a plan, how it was found, and what is certain.

    Attributes:
        plan: the plan of the last certificate.
        certified: whether its certificate holds for the drop that was asked; if not, no plan was certified.
        certificate: true with the stated confidence, whichever attempt succeeded.
        asked: the drop that was allowed, as a share (0.005 is half a point).
        trials: the search, in its order.
        failed: certificates of smaller plans that did not suffice.
    """

    plan: Plan
    certified: bool
    certificate: Certificate
    asked: float
    trials: tuple[Trial, ...]
    failed: tuple[Certificate, ...] = ()

    def __str__(self) -> str:
        word = "certified" if self.certified else "NOT certified"
        return (
            f"{self.plan.average_bits:.4f} average bits, {word} for a drop of {self.asked:g}: {self.certificate} "
            f"({len(self.trials)} plans tried, {len(self.failed)} certificates failed)"
        )


def allocate_within(
    model: nn.Module,
    profile: Profile,
    selection: Iterable[Any],
    certification: Iterable[Any],
    *,
    drop: float,
    metric: Metric = "accuracy",
    deploy: Deploy | None = None,
    confidence: float = 0.95,
    tolerance: float = 0.05,
    attempts: int = 4,
    forward: Forward | None = None,
    average_activation_bits: float | None = None,
    **constraints: Any,
) -> Within:
    """Find the smallest plan whose metric drops by no more than `drop`, and certify it on other data.

    Args:
        model: the float model; it stays as it is.
        profile: its evidence.
        selection: labelled batches (unless the metric needs no labels) that the search looks at.
        certification: batches that took no part in anything before: neither here nor in training, if the certificate
            is to speak about new data.
        drop: largest drop allowed, as a share: 0.005 is half a point of accuracy.
        metric: "accuracy", or a function of (logits, batch) that scores each sample between 0 and 1.
        deploy: from a plan to a quantized model; nearest rounding when None (see `pipeline`).
        confidence: of the certificate, all attempts together.
        tolerance: average bits at which bisection stops, and the first step up after a failed certificate.
        attempts: how many plans may be put to the certificate.
        forward: how to call the model.
        average_activation_bits: limit on chosen activations, the same for all plans that are tried (see `Budget`);
            the search is over the bits of the weights. Without it activations stay in float unless they are given.
        constraints: further arguments of `allocate`: ``predictor``, ``menu``, ``lower``, ``upper``, ``fixed``,
            ``fused``, ``activations``. Static activation grids need a `deploy` with calibration data.

    Raises:
        DataError: no data, or samples of the search among those for the certificate.
        GeoquantError: a drop, confidence, tolerance or number of attempts that makes no sense.
    """
    if not (0 < drop <= 1 and 0 < confidence < 1 and tolerance > 0 and attempts >= 1):
        raise GeoquantError(
            f"drop={drop}, confidence={confidence}, tolerance={tolerance}, attempts={attempts} make no sense; a "
            "drop of half a point is 0.005"
        )
    chosen, held_out = collect(selection), collect(certification)
    check_disjoint(chosen, held_out)
    limits = {"average_activation_bits": average_activation_bits}
    search = _Search(model, profile, chosen, metric, deploy or pipeline(model), forward, limits, constraints)
    alpha = (1 - confidence) / attempts
    search.allow(drop, math.log(1 / alpha), sum(batch_size(batch) for batch in held_out))
    plan = search.bisect(tolerance)
    failed: list[Certificate] = []
    judge = Certifier(model, held_out, metric, forward)
    while True:
        certificate = judge.certify(search.deploy(plan), drop, 1 - alpha)
        certificate = replace(certificate, confidence=confidence)
        holds = certificate.upper_bound <= drop
        larger = None if holds or len(failed) + 1 >= attempts else search.larger(plan, tolerance * 2 ** len(failed))
        if larger is None:
            return Within(plan, holds, certificate, drop, tuple(search.trials), tuple(failed))
        failed.append(certificate)
        plan = larger


class _Search:
    """Bisection over average bits; every plan is deployed and looked at once."""

    def __init__(
        self,
        model: nn.Module,
        profile: Profile,
        batches: Sequence[Any],
        metric: Metric,
        deploy: Deploy,
        forward: Forward | None,
        limits: dict[str, Any],
        constraints: dict[str, Any],
    ) -> None:
        self.deploy, self.trials = deploy, list[Trial]()
        self._profile, self._batches, self._metric, self._forward = profile, batches, metric, forward
        self._limits, self._constraints = limits, constraints
        self._before = np.concatenate(list(scores(model, batches, metric, forward)))
        self._seen: dict[tuple[str, ...], Trial] = {}
        self._drop, self._log, self._samples = 0.0, 0.0, 1

    def allow(self, drop: float, log: float, samples: int) -> None:
        """Say what is allowed, and what the certificate will have: log(1/α) and samples."""
        self._drop, self._log, self._samples = drop, log, samples

    def bisect(self, tolerance: float) -> Plan:
        """Return the smallest plan found that should pass; the largest there is when none does."""
        low, best = self._least(), self._plan(math.inf)
        steps = max(math.ceil(math.log2(max((best.average_bits - low) / tolerance, 1.0))), 0) + 1
        with task("searching for the smallest model", steps) as advance:
            passed = self._try(best).passed
            advance()
            while passed and best.average_bits - low > tolerance:
                middle = (low + best.average_bits) / 2
                plan = self._plan(middle)
                if self._try(plan).passed and plan.average_bits < best.average_bits:
                    best = plan
                else:
                    low = middle
                advance()
        return best

    def larger(self, plan: Plan, step: float) -> Plan | None:
        """Return a plan of `step` more average bits at least; None when there is none."""
        if plan.key == (most := self._plan(math.inf)).key:
            return None
        while True:
            found = self._plan(plan.average_bits + step)
            if found.average_bits > plan.average_bits:
                return found
            if plan.average_bits + step > most.average_bits:
                return most
            step *= 2

    def _plan(self, average_bits: float) -> Plan:
        budget = Budget(average_bits=min(average_bits, 64.0), **self._limits)
        return allocate(self._profile, budget, **self._constraints)

    def _least(self) -> float:
        """Return the average bits of the smallest plan that the constraints allow."""
        options = {name: self._constraints.get(name) for name in ("menu", "lower", "upper", "fixed")}
        fused = self._constraints.get("fused", ())
        request = make_request(Budget(average_bits=64), "milp", "sum", **options, fused=fused)
        inventory = self._profile.inventory
        choices = make_choices(inventory, self._profile.table(self._constraints.get("predictor")), request)
        return choices.least(choices.bits) / inventory.weights

    def _try(self, plan: Plan) -> Trial:
        if plan.key not in self._seen:
            after = np.concatenate(list(scores(self.deploy(plan), self._batches, self._metric, self._forward)))
            trial = self._weigh(plan, self._before - after)
            self._seen[plan.key] = trial
            self.trials.append(trial)
        return self._seen[plan.key]

    def _weigh(self, plan: Plan, changes: Floats) -> Trial:
        """Expect of the certificate what its bound comes to on samples like these (empirical Bernstein's form)."""
        spread = float(changes.std(ddof=1)) if len(changes) > 1 else 1.0
        slack = spread * math.sqrt(2 * self._log / self._samples) + self._log / self._samples
        mean = float(changes.mean())
        return Trial(plan, mean, spread / math.sqrt(len(changes)), mean + slack, mean + slack <= self._drop)
