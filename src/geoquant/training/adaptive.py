"""How does an ordinary training loop run in few bits?

    with adaptive(model, optimizer, schedule) as precision:
        for inputs, targets in loader:
            loss = criterion(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

Inside the block every linear and convolutional layer computes forward and backward in the bits that the schedule
gives it, and after each step the optimizer keeps its state in few bits. At ``optimizer.step()`` gradients are looked
at (NaN or Inf: the step is left out and precision goes up), measurements are made when the schedule wants them, and
precision changes. Evaluation under ``torch.no_grad()`` is in float32. After the block the model is an ordinary one
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from geoquant.errors import GeoquantError, ModelError
from geoquant.models import select
from geoquant.training.accounting import BitOperations, summed
from geoquant.training.facts import Facts
from geoquant.training.log import Change, Log
from geoquant.training.measuring import LastBatch, Loss, MeasuredNoise, Meter, suspended
from geoquant.training.noise import Noise
from geoquant.training.numerics import Rounding, level
from geoquant.training.optimizer_state import Update, flops_per_weight, local, round_state_, state_bits
from geoquant.training.precision import LayerPrecision, next_level
from geoquant.training.products import COVERED, LowPrecisionLayer
from geoquant.training.ranks import agreed, is_sharded, rank
from geoquant.training.schedules import Schedule, make_schedule
from geoquant.training.schedules.protocol import CURVATURE, DECIDE, NOISE, WHOLE, Moment, Proposal

HOLD = 100  # steps for which precision that a NaN raised is not lowered again
_FIELDS = tuple(asdict(LayerPrecision()))


class AdaptivePrecision:
    """A model and an optimizer that train in few bits while this is open; made by `adaptive`.

    Attributes:
        layers: name → layer.
        log: every change of precision with its reason, and every anomaly.
        step: optimizer steps done, left-out ones included.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | str,
        *,
        probe: Loss | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        seed: int = 0,
        forward: Rounding = "nearest",
        backward: Rounding = "stochastic",
        update: Update = "stochastic",
        exclude: tuple[str, ...] = (),
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.schedule = make_schedule(schedule) if isinstance(schedule, str) else schedule
        self.steps_per_epoch, self.total_steps, self.update = steps_per_epoch, total_steps, update
        self._check_horizon()
        self._shared, self._local = Noise(2 * seed), Noise(2 * seed + 1, rank() << 40)
        modules = _covered(model, exclude)
        self.layers = {
            name: LowPrecisionLayer(name, module, self._shared, self._local, forward, backward)
            for name, module in modules.items()
        }
        self.step = 0
        self.log = Log()
        self._facts = Facts(list(self.layers.values()))
        self._last = LastBatch(_unwrapped(model), seed)
        self._meter = Meter(_unwrapped(model), list(self.layers.values()), probe or self._last, seed)
        self._remembers = probe is None and bool(self.schedule.needs)
        self._check_whole()
        self._waiting: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._skipped = False
        self._handles: list[Any] = []
        self._own_forwards: dict[str, bool] = {}
        self._assign(self.schedule.propose(self.moment()), "start")

    def __enter__(self) -> Self:
        """Take over the layers' forwards and the optimizer's step."""
        if any(isinstance(layer.module.__dict__.get("forward"), LowPrecisionLayer) for layer in self.layers.values()):
            raise GeoquantError("this model trains in few bits already; leave the other `adaptive` block first")
        for name, layer in self.layers.items():
            self._own_forwards[name] = "forward" in layer.module.__dict__
            layer.module.forward = layer
        if self._remembers:
            self._handles.append(self.model.register_forward_pre_hook(self._last.remember, with_kwargs=True))
        self._handles.append(self.optimizer.register_step_pre_hook(self._before_step))
        self._handles.append(self.optimizer.register_step_post_hook(self._after_step))
        return self

    def __exit__(self, *_: object) -> None:
        """Give the model and the optimizer back as they were, trained."""
        for name, layer in self.layers.items():
            del layer.module.forward
            if self._own_forwards[name]:
                layer.module.forward = layer.plain
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def assignment(self) -> dict[str, LayerPrecision]:
        """The precision of every layer now."""
        return {name: layer.precision for name, layer in self.layers.items()}

    @property
    def operations(self) -> BitOperations:
        """The bit-operations spent up to now."""
        return summed(layer.count for layer in self.layers.values())

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of the covered layers: ``state`` (weights and what the optimizer keeps for them), ``activations``."""
        kept = sum(
            state_bits(self.optimizer.state.get(layer.weight, {}), layer.weight, layer.precision)
            for layer in self.layers.values()
        )
        return {"state": kept // 8, "activations": sum(one.count.activation_bits for one in self.layers.values()) // 8}

    def moment(self) -> Moment:
        """Return what the schedule would decide on now."""
        return Moment(
            self.step,
            float(self.optimizer.param_groups[0]["lr"]),
            self.steps_per_epoch,
            self.total_steps,
            self.assignment,
            self._facts.layers(max(self.step, 1)),
            self._facts.coupling_matrix(),
            self._facts.initial,
        )

    def measure(self, agenda: frozenset[str]) -> None:
        """Measure now what is on `agenda` (see `Schedule.agenda`); the next `moment` knows it."""
        if CURVATURE in agenda:
            columns = self._meter.curvature(WHOLE in agenda or self._facts.coupling is None)
            self._facts.set_curvature({j: agreed(column) for j, column in columns.items()})
        if NOISE in agenda:
            found = self._meter.noise(whole=self._facts.noise is None)
            rows = {j: agreed(row) for j, row in found.rows.items()}
            self._facts.set_noise(MeasuredNoise(agreed(found.exact), rows, agreed(found.together)))

    @contextmanager
    def float32(self) -> Iterator[None]:
        """Compute in float32 for a while, uncounted, as for a measurement of one's own."""
        with suspended(list(self.layers.values())):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs besides model and optimizer: plain numbers, and tensors."""
        return {
            "step": self.step,
            "assignment": {name: asdict(precision) for name, precision in self.assignment.items()},
            "counts": {name: layer.count.state_dict() for name, layer in self.layers.items()},
            "noise": [self._shared.counter, self._local.counter],
            "log": self.log.state_dict(),
            "facts": self._facts.state_dict(),
            "waiting": dict(self._waiting),
            "held": dict(self._held),
            "meter": self._meter.state_dict(),
            "draws": self._last.draws,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a run where `state_dict` was.

        Raises:
            ModelError: the state is another model's.
        """
        if set(state["assignment"]) != set(self.layers):
            raise ModelError(
                f"this state is of a run with layers {', '.join(state['assignment'])}; the model has "
                f"{', '.join(self.layers)}"
            )
        self.step = state["step"]
        for name, layer in self.layers.items():
            layer.precision = LayerPrecision(**state["assignment"][name])
            layer.count.load_state_dict(state["counts"][name])
        self._shared.counter, self._local.counter = state["noise"]
        self.log.load_state_dict(state["log"])
        self._facts.load_state_dict(state["facts"])
        self._waiting, self._held = dict(state["waiting"]), dict(state["held"])
        self._meter.load_state_dict(state["meter"])
        self._last.draws = state["draws"]

    def _before_step(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look at the gradients; where the step computes them itself, by a closure, after it did."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._look()
            return None

        def watched() -> Any:
            loss = closure()
            self._look()
            return loss

        return args[:1], {**kwargs, "closure": watched}

    @torch.no_grad()
    def _look(self) -> None:
        gradients = {name: layer.weight.grad for name, layer in self.layers.items()}
        squares = self._facts.squares(list(gradients.values()))
        others = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = bool(torch.isfinite(torch.stack(torch._foreach_norm([*map(local, others)])).sum())) if others else True
        if any(is_sharded(g) for g in others):
            finite = agreed([float(not finite)], "max")[0] == 0
        self._skipped = not finite
        if finite:
            self._facts.see(squares)
            return
        self.log.anomalies.append(self.step)
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
            parameter.grad = None
        self._assign({name: self._raised(layer.precision) for name, layer in self.layers.items()}, "NaN or Inf")
        self._held.update(dict.fromkeys(self.layers, self.step + HOLD))

    def _after_step(self, *_: Any) -> None:
        if not self._skipped:
            self._round_state()
        self.step += 1
        agenda = self.schedule.agenda(self.step, self.steps_per_epoch)
        self.measure(agenda)
        if DECIDE in agenda:
            moment = self.moment()
            self.log.see(self.step, {name: [one.gradient_norm, one.curvature] for name, one in moment.layers.items()})
            self._assign(self.schedule.propose(moment), "decision")

    def _round_state(self) -> None:
        groups = {p: group for group in self.optimizer.param_groups for p in group["params"]}
        for layer in self.layers.values():
            weight = layer.weight
            if weight in groups:
                flops = flops_per_weight(self.optimizer, groups[weight]) * weight.numel()
                layer.count.update(flops, layer.precision)
                round_state_(weight, self.optimizer.state[weight], layer.precision, self.update, self._shared)

    def _assign(self, proposals: dict[str, Proposal], occasion: str) -> None:
        for name, proposal in proposals.items():
            layer = self.layers[name]
            after = proposal.precision
            if occasion == "decision":
                after = self._with_hysteresis(name, layer.precision, after)
            if after != layer.precision or occasion == "start":
                self.log.changes.append(Change(self.step, name, layer.precision, after, proposal.reason))
            layer.precision = after

    def _with_hysteresis(self, name: str, now: LayerPrecision, wish: LayerPrecision) -> LayerPrecision:
        """Follow a wish for more bits at once, one for fewer after `patience` decisions in a row."""
        lower = [f for f in _FIELDS if level(getattr(wish, f)).bits < level(getattr(now, f)).bits]
        self._waiting[name] = self._waiting.get(name, 0) + 1 if lower else 0
        waits = self._waiting[name] < self.schedule.patience or self.step < self._held.get(name, 0)
        if lower and not waits:
            self._waiting[name] = 0
        return replace(wish, **{f: getattr(now, f) for f in lower}) if waits else wish

    def _raised(self, precision: LayerPrecision) -> Proposal:
        levels = self.schedule.levels
        up = {f: next_level(levels, level(getattr(precision, f)).bits + 1) for f in _FIELDS}
        return Proposal(replace(precision, **up), "NaN or Inf in the gradients: one level up")

    def _check_horizon(self) -> None:
        given = {"steps_per_epoch": self.steps_per_epoch, "total_steps": self.total_steps}
        for name in sorted(self.schedule.needs_horizon):
            if given[name] is None:
                raise GeoquantError(f"the schedule {type(self.schedule).__name__} needs {name}=; give it to `adaptive`")

    def _check_whole(self) -> None:
        if self.schedule.needs:
            for name, layer in self.layers.items():
                if is_sharded(layer.weight):
                    raise ModelError(
                        f"'{name}' is sharded, and Hessian-vector products need whole weights; "
                        "use DDP, or a schedule that measures gradient norms only"
                    )


def adaptive(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule | str = "float32",
    *,
    probe: Callable[[], Tensor] | None = None,
    steps_per_epoch: int | None = None,
    total_steps: int | None = None,
    seed: int = 0,
    forward: Rounding = "nearest",
    backward: Rounding = "stochastic",
    update: Update = "stochastic",
    exclude: tuple[str, ...] = (),
) -> AdaptivePrecision:
    """Let `model` and `optimizer` train in the bits that `schedule` decides; a context manager.

    Args:
        model: trained by a loop of the caller's; DDP and FSDP2 models too.
        optimizer: its step ends a training step.
        schedule: a `Schedule`, or the name of one (`make_schedule`).
        probe: the mean loss on some small batch, for measurements; without it curvature is measured on the first
            inputs of the model's last batch, without labels.
        steps_per_epoch: optimizer steps in an epoch, for schedules that count epochs.
        total_steps: of the whole run, for schedules that plan ahead.
        seed: of every draw of stochastic rounding.
        forward: rounding of weights and activations.
        backward: rounding of gradients.
        update: rounding of what the optimizer keeps.
        exclude: names or ``re:`` patterns of layers that stay in float32.

    Raises:
        ModelError: no layer can be covered.
        GeoquantError: the schedule needs to know more.

    >>> torch.manual_seed(0) and None
    >>> net = nn.Linear(4, 1)
    >>> sgd = torch.optim.SGD(net.parameters(), 0.1)
    >>> x = torch.randn(64, 4)
    >>> with adaptive(net, sgd, "uniform:int6") as precision:
    ...     for _ in range(50):
    ...         sgd.zero_grad()
    ...         loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
    ...         loss.backward()
    ...         sgd.step()
    >>> loss.item() < 0.01, precision.operations.average_bits < 9  # the optimizer is in float32
    (True, True)
    """
    return AdaptivePrecision(
        model,
        optimizer,
        schedule,
        probe=probe,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        seed=seed,
        forward=forward,
        backward=backward,
        update=update,
        exclude=exclude,
    )


def _covered(model: nn.Module, exclude: tuple[str, ...]) -> dict[str, nn.Module]:
    skipped = nn.modules.linear.NonDynamicallyQuantizableLinear  # attention reads its weight without calling it
    found: dict[str, nn.Module] = {
        name.removeprefix("module."): module
        for name, module in model.named_modules()
        if isinstance(module, COVERED) and not isinstance(module, skipped)
    }
    left_out = set(select(list(found), exclude)) if exclude else set()
    found = {name: module for name, module in found.items() if name not in left_out}
    if not found:
        raise ModelError("this model has no linear or convolutional layer to train in few bits")
    return found


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
