"""Derivatives of a map at many points at once: what curvature and sampled Lipschitz constants are made of.

A map takes (points, *input shape) to (points, ...) and treats points independently, so that one backward
pass serves all of them. Only reverse mode is used: fused kernels have no forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from geoquant.errors import DataError, GeoquantError, ModelError
from geoquant.geometry.lanczos import Apply
from geoquant.models import evaluating

Map = Callable[[Tensor], Tensor]


@contextmanager
def points_of(function: Map, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Evaluate `function` at `inputs`, differentiably; yield (points, outputs as (points, numbers)).

    A module is put in eval mode and its parameters are left out of the graph; both are restored.

    Raises:
        DataError: the inputs are not floating point.
        ModelError: the outputs do not have one row per point.
    """
    if not inputs.is_floating_point() or inputs.dim() == 0:
        raise DataError(
            f"points must be a floating-point tensor (points, ...), got {inputs.dtype} {tuple(inputs.shape)}"
        )
    if torch.is_inference_mode_enabled():
        raise GeoquantError("derivatives need autograd; call this outside torch.inference_mode")
    x = inputs.detach().clone().requires_grad_()
    with _frozen(function), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        y = function(x)
        if y.shape[:1] != x.shape[:1]:
            raise ModelError(f"{len(x)} points gave outputs of shape {tuple(y.shape)}; expected one row per point")
        yield x, y.reshape(len(x), -1)


@contextmanager
def _frozen(function: Map) -> Iterator[None]:
    if not isinstance(function, nn.Module):
        yield
        return
    flags = [(parameter, parameter.requires_grad) for parameter in function.parameters()]
    try:
        function.requires_grad_(False)
        with evaluating(function):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _derivative(y: Tensor, x: Tensor, along: Tensor | None = None, *, graph: bool = False) -> Tensor:
    """Return the vector-Jacobian product in x, zeros where y does not depend on it."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    found = torch.autograd.grad(y, x, along, create_graph=graph, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(x) if found is None else found


def jacobian_gram(x: Tensor, y: Tensor) -> Apply:
    """Return rows ↦ JᵀJ·rows for each point; rows are (points, input numbers)."""
    dummy = torch.zeros_like(y, requires_grad=True)
    pulled = _derivative(y, x, dummy, graph=True)

    def apply(rows: Tensor) -> Tensor:
        pushed = _derivative(pulled, dummy, rows.view_as(x))
        return _derivative(y, x, pushed).flatten(1)

    return apply


def hessian_rows(scalar: Tensor, x: Tensor) -> Apply:
    """Return rows ↦ ∇²(scalar)·rows, where `scalar` is a sum over points."""
    gradient = _derivative(scalar, x, graph=True)
    return lambda rows: _derivative(gradient, x, rows.view_as(x)).flatten(1)


def second_directional(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """Return D²f(h, h) at each point for h = rows, (points, output numbers)."""
    direction = rows.view_as(x)
    dummy = torch.zeros_like(y, requires_grad=True)
    # ⟨u, D²f(h, h)⟩ is linear in u; its gradient in u is the vector itself.
    first = (_derivative(y, x, dummy, graph=True) * direction).sum()
    second = (_derivative(first, x, graph=True) * direction).sum()
    return _derivative(second, dummy)
