"""How many bits does a grid need before an error can be met, and how many are enough?

Three lower bounds, each necessary for *its* grid and *its* information model only, and one upper bound. They are not
bounds on every algorithm: another grid, or another way to hand over the input, escapes them.

1. Output coding: the scheme names one of finitely many outputs. It pays for the curvature of the map.
2. Input rounding, first order: inputs of one grid cell cannot be told apart. It pays for the slope.
3. Input rounding at a critical point: the same where the slope vanishes. It pays for the root of the curvature.

κ is ½ sup ‖D²f(h, h)‖ over unit h, as in `geoquant.geometry.curvature`; a uniform b-bit grid over a range R has the
step R/2^b. The formulas of the seeds stand at the end under the name of what they are. Sources: docs/sources.md,
"Curvature-Guided Bit Allocation" and "Curvature-Guided Transformer Quantization", in the sound form derived there.

Where the answer stops: one map in exact arithmetic. Bits of weights, and rounding inside the map, are other questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoquant.errors import GeoquantError

OUTPUT_CODING = "output coding"
INPUT_ROUNDING = "input rounding, first order"
CRITICAL_POINT = "input rounding at a critical point"


@dataclass(frozen=True)
class BitRequirement:
    """A number of bits, and what it is a statement about.

    Attributes:
        bits: real number of bits, at least 0; round up for a word length.
        model: the information model.
        claim: what the number says, and about what only.
    """

    bits: float
    model: str
    claim: str

    @property
    def word_length(self) -> int:
        """The smallest whole number of bits that meets the requirement."""
        # 1e-12 forgives the rounding of a logarithm that is a whole number.
        return math.ceil(self.bits - 1e-12)


def necessary_outputs(curvature: float, diameter: float, tolerance: float) -> int:
    """Return how many distinct outputs an ε-accurate scheme needs along a chord, at least.

    For a direction u with u·D²f(h, h) ≥ 2κ‖h‖² along a chord of length D, the values of u·f on the chord spread over at
    least κD²/4 (a parabola's sagitta), and one output serves an interval of at most 2ε: so at least κD²/(8ε) outputs.

    Args:
        curvature: κ, a lower bound of the curvature along the whole chord, in output units per input unit squared.
        diameter: D, length of the chord, in input units.
        tolerance: ε > 0, in output units.

    >>> necessary_outputs(4.0, 2.0, 1e-3)       # ½·8·x² on [−1, 1]: values in [0, 4], 2000 intervals of 0.002
    2000
    """
    _check(curvature=curvature, diameter=diameter, tolerance=tolerance)
    # The slack forgives rounding of the quotient, which would ask for one output too many.
    return max(1, math.ceil(curvature * diameter**2 / (8 * tolerance) * (1 - 1e-12)))


def necessary_bits(
    tolerance: float,
    size: float,
    *,
    model: str,
    curvature: float | None = None,
    spectral_norm: float | None = None,
) -> BitRequirement:
    """Return the bits that a scheme needs, under one of three information models.

    Args:
        tolerance: ε > 0, largest error allowed, in output units.
        size: for `OUTPUT_CODING` the length D of a chord in the domain; for the other two the range R that the uniform
            input grid covers along the direction in question; in input units.
        model: `OUTPUT_CODING`: log₂(κD²/(8ε)), counting output code bits. `INPUT_ROUNDING`: log₂(σR/(2ε)), for an
            affine map. `CRITICAL_POINT`: ½·log₂(κR²/(8ε)), where a grid cell is centered at the critical point.
        curvature: κ, needed by `OUTPUT_CODING` (a lower bound along the chord) and `CRITICAL_POINT` (at the point).
        spectral_norm: σ, needed by `INPUT_ROUNDING`.

    Raises:
        GeoquantError: an unknown model, or a number that is missing, not finite or not positive.

    >>> necessary_bits(1e-3, 2.0, model=OUTPUT_CODING, curvature=4.0).word_length
    11
    >>> round(necessary_bits(1e-3, 2.0, model=INPUT_ROUNDING, spectral_norm=3.0).bits, 6)     # log₂ 3000
    11.550747
    >>> round(necessary_bits(1e-3, 2.0, model=CRITICAL_POINT, curvature=4.0).bits, 6)         # ½ log₂ 2000
    5.482892
    """
    _check(tolerance=tolerance, size=size)
    if model == INPUT_ROUNDING:
        _need("spectral_norm", spectral_norm, model)
        bits = math.log2(_known(spectral_norm) * size / (2 * tolerance)) if spectral_norm else 0.0
        return _necessary(bits, model, "a uniform input grid whose cells cannot be told apart")
    if model not in (OUTPUT_CODING, CRITICAL_POINT):
        names = f"'{OUTPUT_CODING}', '{INPUT_ROUNDING}' or '{CRITICAL_POINT}'"
        raise GeoquantError(f"the information model is {names}, got '{model}'")
    _need("curvature", curvature, model)
    outputs = _known(curvature) * size**2 / (8 * tolerance)
    bits = math.log2(outputs) if outputs > 0 else 0.0
    if model == OUTPUT_CODING:
        return _necessary(bits, model, "schemes that answer with one of 2^bits outputs")
    return _necessary(bits / 2, model, "a uniform input grid with a cell centered at the critical point")


def sufficient_bits(
    tolerance: float, size: float, lipschitz: float, curvature: float = 0.0, output_size: float = 0.0
) -> BitRequirement:
    """Return the mantissa bits that are enough for one layer with relative rounding of its input and output.

    A Taylor expansion gives error ≤ L‖x‖2^{−p} + κ‖x‖²2^{−2p} + ‖f(x)‖2^{−p}, an *upper* bound of the error; the
    returned p makes it equal to the tolerance. (The seed reads the same line as a lower bound, see docs/sources.md.)

    Args:
        tolerance: ε > 0, in output units.
        size: largest ‖x‖ on the domain, in input units.
        lipschitz: norm of the layer's derivative at the inputs.
        curvature: κ = ½ sup‖D²f‖ between inputs and rounded inputs; 0 for an affine layer.
        output_size: largest ‖f(x)‖; 0 leaves the output unrounded.

    >>> round(sufficient_bits(1e-3, 1.0, 1.0).bits, 6)                # 2^{−p} = 1e-3
    9.965784
    >>> p = sufficient_bits(0.01, 2.0, 3.0, 5.0, 1.0).bits
    >>> round(3 * 2 * 2**-p + 5 * 4 * 4**-p + 1 * 2**-p, 12)
    0.01
    """
    _check(tolerance=tolerance, size=size)
    for name, value in (("lipschitz", lipschitz), ("curvature", curvature), ("output_size", output_size)):
        _need(name, value, "sufficient bits")
    linear, square = lipschitz * size + output_size, curvature * size**2
    # Positive root of square·t² + linear·t = ε with t = 2^{−p}, in the form that does not cancel.
    root = linear + math.sqrt(linear**2 + 4 * square * tolerance)
    bits = math.log2(root / (2 * tolerance)) if root > 0 else 0.0
    return BitRequirement(max(bits, 0.0), "relative rounding", "sufficient by Taylor expansion; says nothing of need")


def seed11_curvature_bits(curvature: float, diameter: float, tolerance: float) -> float:
    """Return ½·log₂(κD²/ε), the seed's "necessary" bits (docs/sources.md, "Curvature-Guided Bit Allocation").

    It is the critical-point bound without its 1/8, so 1.5 bits more than that need proves.

    >>> need = necessary_bits(1e-3, 2.0, model=CRITICAL_POINT, curvature=4.0).bits
    >>> round(seed11_curvature_bits(4.0, 2.0, 1e-3) - need, 12)
    1.5
    """
    _check(curvature=curvature, diameter=diameter, tolerance=tolerance)
    return 0.5 * math.log2(curvature * diameter**2 / tolerance)


def seed11_linear_bits(lipschitz: float, size: float, tolerance: float) -> float:
    """Return log₂(L‖x‖/ε), the seed's linear-regime bits; sufficient for the first-order term alone.

    Source: docs/sources.md, "Curvature-Guided Bit Allocation".

    >>> seed11_linear_bits(1.0, 8.0, 1.0)
    3.0
    """
    _check(lipschitz=lipschitz, size=size, tolerance=tolerance)
    return math.log2(lipschitz * size / tolerance)


def seed9_condition_number_bits(condition_number: float, diameter: float, tolerance: float) -> float:
    """Return log₂(κD²/ε) with a condition number (or a spectral norm) where κ stands, as the seed computes it.

    Source: docs/sources.md, "Curvature-Guided Transformer Quantization". With a curvature in place of the condition
    number and 1/8 inside it would be the output-coding bound; a condition number is no curvature, so this is a score.

    >>> round(seed9_condition_number_bits(100.0, 2.0, 1e-6), 3)
    28.575
    """
    _check(condition_number=condition_number, diameter=diameter, tolerance=tolerance)
    return math.log2(condition_number * diameter**2 / tolerance)


def _necessary(bits: float, model: str, about: str) -> BitRequirement:
    return BitRequirement(max(bits, 0.0), model, f"necessary for this grid and information model: {about}")


def _known(value: float | None) -> float:
    return 0.0 if value is None else value


def _need(name: str, value: float | None, model: str) -> None:
    if value is None or not math.isfinite(value) or value < 0:
        raise GeoquantError(f"{model} needs a finite {name} of at least 0, got {value}")


def _check(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise GeoquantError(f"{name} must be a finite number above 0, got {value}")
