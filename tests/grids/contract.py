"""Laws of every grid, checked against dense float64 arithmetic; a newcomer's format inherits them all.

``check_grid(grid, matrix)`` holds one grid to the laws on one matrix; `matrices` draws matrices for Hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from geoquant.grids import SCALE_DTYPES, Grid, QuantizedMatrix, Scales


@dataclass
class Case:
    """A matrix on a grid, and where its points lie in float64."""

    grid: Grid
    matrix: Tensor
    quantized: QuantizedMatrix

    @property
    def scale(self) -> Tensor:
        return spread(self.grid, self.quantized.scales.scale, self.matrix)

    @property
    def zero(self) -> Tensor:
        zero = self.quantized.scales.zero
        return torch.zeros_like(self.scale) if zero is None else spread(self.grid, zero, self.matrix)

    @property
    def slack(self) -> Tensor:
        """What float32 arithmetic may cost, in weight units."""
        return 2.0**-21 * (self.matrix.double().abs() + (self.scale * self.zero).abs()) + 2.0**-148


def spread(grid: Grid, values: Tensor, matrix: Tensor) -> Tensor:
    """Give every weight its own value of `values` (channels, groups), by counting, in float64."""
    channels, fan_in = matrix.shape
    size = getattr(grid.granularity, "size", fan_in)
    index = torch.arange(fan_in) // size if values.shape[1] > 1 else torch.zeros(fan_in, dtype=torch.long)
    return values.double().expand(channels, -1)[:, index]


def check_grid(grid: Grid, matrix: Tensor) -> None:
    """Hold `grid` to every law on `matrix` (channels, fan_in)."""
    before = matrix.clone()
    case = Case(grid, matrix, grid.quantize(matrix))
    for law in LAWS:
        law(case)
    assert torch.equal(matrix, before), "the matrix changed"


def name_is_inverse_to_parsing(case: Case) -> None:
    again = Grid.parse(str(case.grid))
    assert again == case.grid
    assert hash(again) == hash(case.grid)
    assert str(again) == str(case.grid)


def codes_are_unsigned_and_few(case: Case) -> None:
    codes = case.quantized.codes
    assert codes.shape == case.matrix.shape
    if case.grid.format.value_dtype is not None:
        assert codes.dtype == case.grid.format.value_dtype
        return
    assert codes.dtype == (torch.int32 if case.grid.bits == 16 else torch.uint8)
    assert 0 <= int(codes.min()) <= int(codes.max()) < (3 if case.grid.bits == 1.6 else 2**case.grid.bits)


def scales_are_stored_numbers(case: Case) -> None:
    scales = case.quantized.scales
    assert scales.scale.dtype == torch.float32
    assert tuple(scales.scale.shape) == case.grid.granularity.shape(tuple(case.matrix.shape))
    if case.grid.granularity.scaled:
        kind = SCALE_DTYPES[case.grid.scale_dtype]
        assert torch.equal(kind.load(kind.store(scales.scale)), scales.scale)
    assert (scales.zero is not None) == case.grid.format.has_zero_point


def rounding_is_idempotent(case: Case) -> None:
    again = case.grid.encode(case.quantized.dequantize(), case.quantized.scales)
    assert torch.equal(again, case.quantized.codes)


def every_weight_goes_to_its_nearest_point(case: Case) -> None:
    result, levels = case.quantized.dequantize().double(), case.grid.format.levels
    if levels is None:
        assert torch.equal(result, case.matrix.double())
        return
    weights = case.matrix.double()
    assert (_distance(case, result, levels) <= case.slack).all(), "off the grid"
    assert ((result - weights).abs() <= _distance(case, weights, levels) + case.slack).all(), "not the nearest point"


def _distance(case: Case, values: Tensor, levels: Tensor) -> Tensor:
    """Return how far each value is from the nearest point: over all levels, or the two around it of very many."""
    if len(levels) <= 256:
        points = case.scale[..., None] * (levels - case.zero[..., None])
        return (values[..., None] - points).abs().amin(-1)
    x = torch.where(case.scale == 0, 0.0, values / case.scale) + case.zero
    above = torch.searchsorted(levels, x).clamp(1, len(levels) - 1)
    around = torch.stack([levels[above - 1], levels[above]]) - case.zero
    return (values - case.scale * around).abs().amin(0)


def max_abs_scales_clip_nothing(case: Case) -> None:
    levels = case.grid.format.levels
    if levels is None or not case.grid.granularity.scaled:
        return
    grid = replace(case.grid, scaling="maxabs")
    plain = Case(grid, case.matrix, grid.quantize(case.matrix))
    error = (plain.quantized.dequantize().double() - case.matrix.double()).abs()
    assert (error <= plain.scale * levels.diff().max() / 2 + plain.slack).all()


def searched_scales_are_never_worse_than_max_abs(case: Case) -> None:
    if case.grid.scaling not in ("mse", "mse-signed"):
        return
    plain = replace(case.grid, scaling="maxabs").quantize(case.matrix)
    errors = [
        (result.dequantize().double() - case.matrix.double()).square().sum() for result in (case.quantized, plain)
    ]
    assert errors[0] <= errors[1] * (1 + 1e-5) + case.slack.square().sum()


def zero_rows_stay_zero(case: Case) -> None:
    if case.grid.scale_dtype == "e8m0" and case.grid.bits == 1:
        return  # e8m0 has no zero and binary no level at zero
    zeros = torch.cat([case.matrix, torch.zeros(1, case.matrix.shape[1])])
    if case.grid.granularity.shape((2, 1))[0] == 1:
        zeros = zeros[-1:]
    assert (case.grid.quantize(zeros).dequantize()[-1] == 0).all()


def gradients_pass_inside_and_stop_outside(case: Case) -> None:
    stretched = (3 * case.matrix).clamp(-3e38, 3e38).requires_grad_()
    result = case.grid.fake_quantize(stretched, case.quantized.scales)
    expected = case.grid.decode(case.grid.encode(stretched, case.quantized.scales), case.quantized.scales)
    assert torch.equal(result.detach(), expected)
    gradient = torch.autograd.grad(result, stretched, torch.full_like(result, 7.0))[0]
    inside, known = _inside(case, stretched.detach().double())
    assert torch.equal(gradient[known], 7.0 * inside[known].float())


def _inside(case: Case, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Say which weights lie inside the range, and for which that is clear in float32."""
    levels = case.grid.format.levels
    if levels is None:
        return torch.ones_like(weights, dtype=torch.bool), torch.ones_like(weights, dtype=torch.bool)
    x = torch.where(case.scale == 0, 0.0, weights / case.scale) + case.zero
    low, high = 1.5 * levels[0] - 0.5 * levels[1], 1.5 * levels[-1] - 0.5 * levels[-2]
    margin = 1e-6 * torch.maximum(x.abs(), case.zero)
    return (x >= low) & (x <= high), ((x - low).abs() > margin) & ((x - high).abs() > margin)


def packing_loses_nothing(case: Case) -> None:
    quantized = case.quantized
    again = QuantizedMatrix.unpack(case.grid, quantized.shape, quantized.pack())
    assert torch.equal(again.codes, quantized.codes)
    assert torch.equal(again.scales.scale, quantized.scales.scale)
    assert bits_of(again.dequantize()) == bits_of(quantized.dequantize())


def bits_of(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def storage_is_exact(case: Case) -> None:
    shape = case.quantized.shape
    stored, tensors, storage = case.grid.stored(shape), case.quantized.pack(), case.grid.storage(shape)
    assert {part.suffix: (part.dtype, part.shape) for part in stored} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert storage.bytes == size
    assert storage.total_bits == 8 * size
    assert min(storage.code_bits, storage.scale_bits, storage.zero_bits, storage.padding_bits) >= 0
    assert storage.padding_bits < 8 * len(tensors)
    assert 0 <= storage.code_bits - case.matrix.numel() * case.grid.bits < 1


def powers_of_two_commute(case: Case) -> None:
    """Rounding 2^k·w gives 2^k times the rounding of w, bit for bit, where no exponent ends: scales in fp32."""
    if case.grid.scale_dtype != "fp32" or not 1e-20 < float(case.matrix.abs().amax()) < 1e20:
        return
    small = torch.where(case.matrix.abs() < 1e-25, 0.0, case.matrix)
    if (small.abs().amax(1) == 0).any():
        return
    plain = case.grid.quantize(small)
    moved = case.grid.quantize(small * 2.0**-30)
    assert torch.equal(moved.codes, plain.codes)
    assert torch.equal(moved.scales.scale, plain.scales.scale * 2.0**-30)


def slices_of_channels_decode_alone(case: Case) -> None:
    half = slice(len(case.matrix) // 2, None)
    scales: Scales = case.quantized.scales[half]
    assert torch.equal(case.grid.decode(case.quantized.codes[half], scales), case.quantized.dequantize()[half])


LAWS = (
    name_is_inverse_to_parsing,
    codes_are_unsigned_and_few,
    scales_are_stored_numbers,
    rounding_is_idempotent,
    every_weight_goes_to_its_nearest_point,
    max_abs_scales_clip_nothing,
    searched_scales_are_never_worse_than_max_abs,
    zero_rows_stay_zero,
    gradients_pass_inside_and_stop_outside,
    packing_loses_nothing,
    storage_is_exact,
    powers_of_two_commute,
    slices_of_channels_decode_alone,
)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Draw a (channels, fan_in) float32 matrix: ordinary weights, or numbers that Hypothesis likes, at any size."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 37)))
    if draw(st.booleans()):
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        values = generator.standard_t(draw(st.sampled_from([2.0, 5.0, 1e6])), size=shape)
        size = draw(st.sampled_from([1e-9, 1e-3, 0.05, 1.0, 3e4]))
        return torch.from_numpy(values * size).float().clamp_(-6e4, 6e4)
    elements = st.floats(-60000, 60000, width=32)
    return torch.from_numpy(draw(arrays(np.float32, shape, elements=elements)))
