"""One step after another: what does a training step of a quantized model consist of?

Modes of norms, learning rates by the share of the run that is done, the loss, its gradient, the optimizer. What
surrounds the steps (validation, checkpoints, the end) is in `geoquant.recovery.recovering`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoquant.models import Forward, evaluating, predict
from geoquant.recovery.latents import Latents
from geoquant.recovery.objective import Objective
from geoquant.recovery.settings import Settings
from geoquant.recovery.sharding import assign_, whole


def make_optimizer(latents: Latents, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer of the settings over latent weights, steps, norms and biases."""
    groups = latents.groups(settings)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.rate)


def training_mode_(model: nn.Module, settings: Settings) -> None:
    """Put the model in training mode; batch norms keep their statistics when they are frozen."""
    model.train()
    if settings.norms == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def bf16_is_slow(device: torch.device) -> bool:
    """Whether `device` is an x86 processor without units for bf16, where a step was seen to take ten times as long.

    >>> bf16_is_slow(torch.device("cuda"))
    False
    """
    if device.type != "cpu":
        return False
    known = torch.cpu.get_capabilities()
    units = ("amx_bf16", "avx512_bf16")
    return known.get("architecture") == "x86_64" and not any(known.get(unit) for unit in units)


class Stepper:
    """Takes training steps.

    Args:
        model: prepared; possibly wrapped for several processes.
        latents: its trainable parts.
        objective: what is minimised.
        settings: rates and the like.
        total: steps of the whole run.
    """

    def __init__(
        self, model: nn.Module, latents: Latents, objective: Objective, settings: Settings, total: int
    ) -> None:
        self.model, self.latents, self.settings, self.total = model, latents, settings, total
        if settings.arithmetic == "bf16" and bf16_is_slow(next(model.parameters()).device):
            text = "this processor has no units for bf16, so that steps in bf16 take longer here than in float32"
            warnings.warn(f"{text}; set arithmetic to float32", stacklevel=2)
        self.optimizer = make_optimizer(latents, settings)
        self._objective = objective
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]

    def gradient_(self, batch: Any, weight: float = 1.0) -> Tensor:
        """Give every parameter its gradient on `batch`; return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        kind = next(self.model.parameters()).device.type
        with torch.enable_grad():
            with torch.autocast(kind, torch.bfloat16, enabled=self.settings.arithmetic == "bf16"):
                loss = self._objective(self.model, batch)
            (loss * weight).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def move_(self, step: int) -> None:
        """Take the optimizer's step number `step`."""
        share = self.settings.share(step, self.total)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        if self.settings.clip_norm is not None:
            parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        self.optimizer.step()


def norms_of(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that keep statistics.

    >>> len(norms_of(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))))
    1
    """
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def reestimate_norms_(model: nn.Module, batches: Iterator[Any], forward: Forward | None = None) -> int:
    """Give every batch norm the mean of its statistics over `batches`; return how many batches that were.

    Each batch counts alike. Nothing changes where there is no batch norm or no batch.
    """
    norms = norms_of(model)
    if not norms:
        return 0
    count = 0
    with _cumulative(norms):
        for batch in batches:
            if count == 0:
                for norm in norms:
                    norm.reset_running_stats()
            predict(model, batch, forward)
            count += 1
    return count


@torch.no_grad()
def absorb_statistics_(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> int:
    """Give batch norms the statistics that `batches` have now; return how many norms that were.

    Scale and shift take up the difference, so that in evaluation mode the model computes what it computed before. Where
    rounding corrected norms, their statistics are those of the float net; training mode, which normalizes by each
    batch, would start without the correction.

    >>> norm = nn.BatchNorm1d(1).eval()
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> before = norm(x)
    >>> absorb_statistics_(norm, [x]), norm.running_mean.item(), norm.running_var.item()
    (1, 2.0, 1.0)
    >>> torch.allclose(norm(x), before)
    True
    """
    norms = [norm for norm in norms_of(model) if norm.affine]
    seen = {norm: _Moments() for norm in norms}
    hooks = [norm.register_forward_pre_hook(lambda norm, args: seen[norm].add(args[0])) for norm in norms]
    try:
        with evaluating(model):
            for batch in batches:
                predict(model, batch, forward)
    finally:
        for hook in hooks:
            hook.remove()
    for norm in norms:
        if seen[norm].count:
            _absorb_(norm, *seen[norm].result())
    return len(norms)


def _absorb_(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    running_mean, running_var = norm.running_mean, norm.running_var
    assert running_mean is not None
    assert running_var is not None
    scale, shift = whole(norm.weight), whole(norm.bias)
    slope = scale / (running_var + norm.eps).sqrt()
    assign_(norm.bias, shift + slope * (mean.to(slope) - running_mean))
    assign_(norm.weight, slope * (variance.to(slope) + norm.eps).sqrt())
    running_mean.copy_(mean)
    running_var.copy_(variance)


class _Moments:
    """Mean and variance of each channel, over all batches."""

    def __init__(self) -> None:
        self.count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in the input (n, channels, ...) of a norm."""
        rows = x.detach().transpose(0, 1).flatten(1).double()
        self.count += rows.shape[1]
        self._sum = self._sum.to(rows) + rows.sum(1)
        self._squares = self._squares.to(rows) + rows.square().sum(1)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance, both (channels,)."""
        mean = self._sum / self.count
        return mean, self._squares / self.count - mean.square()


@contextmanager
def _cumulative(norms: list[_BatchNorm]) -> Iterator[None]:
    before = [(norm, norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.momentum, norm.training = None, True
    try:
        yield
    finally:
        for norm, momentum, training in before:
            norm.momentum, norm.training = momentum, training
