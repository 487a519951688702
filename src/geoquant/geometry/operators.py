"""How much can a linear layer stretch its input?

`spectral_norm` is the largest singular value of the *operator*: for a convolution the real one, with its
stride, padding, dilation, groups and input size, which is not that of the reshaped kernel. Exact by
factorisation when small, else Lanczos on AᵀA through the layer and its adjoint (a vector-Jacobian product),
which approaches from below. `spectral_norm_bound` is never below: the convolution is a compression of a
periodic one, whose norm a Fourier transform gives (Sedghi et al., arXiv 1805.10408).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geoquant.errors import ModelError
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.lanczos import dominant
from geoquant.geometry.probes import gaussian
from geoquant.models import evaluating

# Matrices with at most this many entries are formed and factorised.
_DENSE = 1 << 20
# Krylov vectors are kept within this many numbers.
_MEMORY = 1 << 25
# Float64 rounding of a Fourier transform and an eigenvalue, generously.
_ROUNDING = 1e-9

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """The linear part of a layer on inputs of one shape, in float64, with its adjoint.

    Attributes:
        forward: (batch, *input shape) → (batch, *output shape), without bias.
        adjoint: the transpose, back.
        input_shape: without the batch axis.
        output_shape: likewise.
    """

    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def matrix(self) -> Tensor:
        """Form the matrix, (outputs, inputs)."""
        size = math.prod(self.input_shape)
        identity = torch.eye(size, dtype=torch.float64).view(size, *self.input_shape)
        return self.forward(identity).reshape(size, -1).T


def linear_map(layer: nn.Module, input_shape: Sequence[int] | None = None) -> LinearMap:
    """Return the linear part of an affine layer (Linear, convolution, average pooling, batch norm in eval mode...).

    Args:
        layer: any module that is affine in its input.
        input_shape: without the batch axis; needed by every layer but Linear.

    Raises:
        ModelError: the shape is missing or does not fit, or the layer is not affine.

    >>> linear_map(nn.AvgPool1d(2), (1, 4)).matrix()
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    shape = _input_shape(layer, input_shape)
    state = {name: value.detach().cpu() for name, value in layer.state_dict().items()}
    double = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}

    def call(x: Tensor) -> Tensor:
        with evaluating(layer):
            answer: Tensor = functional_call(layer, double, (x,))
        return answer

    zero = torch.zeros(1, *shape, dtype=torch.float64)
    try:
        with torch.no_grad():
            offset = call(zero)
    except RuntimeError as error:
        raise ModelError(f"{type(layer).__name__} does not take inputs of shape {shape}: {error}") from error

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            return call(x) - offset

    def adjoint(y: Tensor) -> Tensor:
        x = zero.expand(len(y), *shape).clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(call(x), x, y)[0]

    found = LinearMap(forward, adjoint, shape, tuple(offset.shape[1:]))
    _check_linear(layer, found)
    return found


def _input_shape(layer: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None:
        return tuple(given)
    if isinstance(layer, nn.Linear):
        return (layer.in_features,)
    raise ModelError(
        f"the norm of {type(layer).__name__} depends on the size of its input; pass input_shape=(channels, *space)"
    )


def _check_linear(layer: nn.Module, found: LinearMap) -> None:
    x, y = gaussian([torch.zeros(1, *found.input_shape, dtype=torch.float64)] * 2, 0)
    defect = found.forward(x - 2 * y) - found.forward(x) + 2 * found.forward(y)
    size = found.forward(x).norm() + found.forward(y).norm()
    if float(defect.norm()) > 1e-8 * max(float(size), 1e-300):
        raise ModelError(f"{type(layer).__name__} is not affine in its input; it has no spectral norm")


def spectral_norm(
    layer: nn.Module | Tensor,
    input_shape: Sequence[int] | None = None,
    *,
    tolerance: float = 1e-4,
    max_steps: int = 400,
    seed: int = 0,
) -> Estimate:
    """Return the largest singular value of an affine layer's linear part, or of a matrix.

    Args:
        layer: a Linear, a convolution (transposed ones too) or any other affine module; or a matrix.
        input_shape: (channels, *space), for every layer but Linear.
        tolerance: residual of AᵀA to reach, as a share of σ²; the value is usually far better than that.
        max_steps: applications of AᵀA at most.
        seed: of the start.

    Returns:
        exact for small operators; otherwise from below, with what may be missing as `residual`.

    >>> layer = nn.Conv1d(1, 1, 2, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> print(spectral_norm(layer, (1, 3)))  # [[1, 1, 0], [0, 1, 1]] has norm √3
    1.73205 (exact: singular values)
    """
    if isinstance(layer, Tensor):
        matrix = layer.detach().double().cpu().reshape(layer.shape[0], -1)
        columns = matrix.shape[1]
        map_ = LinearMap(lambda x: x @ matrix.T, lambda y: y @ matrix, (columns,), (len(matrix),))
    else:
        map_ = linear_map(layer, input_shape)
    inputs, outputs = math.prod(map_.input_shape), math.prod(map_.output_shape)
    if inputs * outputs <= _DENSE:
        return Estimate.known(float(torch.linalg.svdvals(map_.matrix())[0]), "singular values")
    return _iterated_norm(map_, tolerance, max_steps, seed)


def _iterated_norm(map_: LinearMap, tolerance: float, max_steps: int, seed: int) -> Estimate:
    size = math.prod(map_.input_shape)

    def gram(rows: Tensor) -> Tensor:
        return map_.adjoint(map_.forward(rows.view(-1, *map_.input_shape))).flatten(1)

    start = gaussian([torch.zeros(1, size, dtype=torch.float64)], seed)[0]
    cycle = max(4, min(60, _MEMORY // size))
    found = dominant(gram, start, tolerance=tolerance, cycle=cycle, max_steps=max_steps)
    sigma = math.sqrt(max(float(found.values), 0.0))
    # |σ² − σ̂²| ≤ r leaves |σ − σ̂| ≤ r/σ̂.
    missing = float(found.residuals) / sigma if sigma else 0.0
    note = "" if missing <= tolerance * sigma else f"not converged to {tolerance:g}"
    return Estimate(sigma, residual=missing, cost=0.0, method=f"lanczos, {found.steps} steps", note=note)


def spectral_norm_bound(layer: nn.Module, input_shape: Sequence[int] | None = None) -> Estimate:
    """Return a number that is never below the spectral norm of a Linear or convolution layer.

    For a convolution: the norm of the periodic convolution, with the same stride, on a torus so large that
    nothing wraps around. Tight on large images; on small ones it exceeds the norm by the border's effect.

    >>> layer = nn.Conv1d(1, 1, 2, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> round(spectral_norm_bound(layer, (1, 3)).value, 5)  # the norm is √3
    2.0
    """
    if isinstance(layer, (nn.Linear, nn.Embedding)):
        matrix = layer.weight.detach().double().cpu()
        return Estimate.known(float(torch.linalg.svdvals(matrix)[0]) * (1 + _ROUNDING), "singular values, rounded up")
    if not isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        raise ModelError(f"no bound is known for {type(layer).__name__}; expected a Linear or a convolution layer")
    shape = _input_shape(layer, input_shape)
    weight = layer.weight.detach().double().cpu()
    # The input side of the convolution: a transposed convolution is the adjoint of one from its output.
    space = linear_map(layer, shape).output_shape[1:] if isinstance(layer, TRANSPOSED) else shape[1:]
    largest = max(_periodic_norm(part, space, layer.stride, layer.dilation) for part in weight.chunk(layer.groups))
    value = largest * _padding_norm(layer, shape) * (1 + _ROUNDING)
    return Estimate(value, method="periodic convolution", note="an upper bound")


def _periodic_norm(kernel: Tensor, space: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> float:
    """Norm of the strided periodic convolution with `kernel` (out, in, *k) on a torus without wrap-around."""
    axes = len(space)
    sizes = []
    for axis in range(axes):
        reach = space[axis] + dilation[axis] * (kernel.shape[2 + axis] - 1)
        sizes.append(-(-reach // stride[axis]) * stride[axis])
        kernel = _dilated(kernel, 2 + axis, dilation[axis])
    spectrum = torch.fft.fftn(kernel, s=sizes, dim=tuple(range(2, 2 + axes)))
    # Striding folds the frequencies that it cannot tell apart onto one another.
    for axis in range(axes):
        place = 2 + 2 * axis
        spectrum = torch.unflatten(spectrum, place, (stride[axis], sizes[axis] // stride[axis]))
    folded = [2 + 2 * axis for axis in range(axes)]
    kept = [3 + 2 * axis for axis in range(axes)]
    blocks = spectrum.permute(*kept, 0, 1, *folded).flatten(axes + 1).flatten(0, axes - 1)
    tall = blocks if blocks.shape[1] >= blocks.shape[2] else blocks.mH
    return math.sqrt(float(torch.linalg.eigvalsh(tall.mH @ tall).amax()) / math.prod(stride))


def _dilated(kernel: Tensor, axis: int, step: int) -> Tensor:
    if step == 1:
        return kernel
    shape = list(kernel.shape)
    shape[axis] = (shape[axis] - 1) * step + 1
    wide = kernel.new_zeros(shape)
    index = torch.arange(0, shape[axis], step)
    return wide.index_copy_(axis, index, kernel)


def _padding_norm(layer: Any, shape: Sequence[int]) -> float:
    """Norm of the padding itself: 1 for zeros; copying a pixel m times stretches it by √m."""
    if layer.padding_mode == "zeros":
        return 1.0
    x = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)
    padded = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    copies = torch.autograd.grad(padded.sum(), x)[0]
    return math.sqrt(float(copies.max()))
