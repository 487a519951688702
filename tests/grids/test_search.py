"""Scale searches against brute force over thousands of scales, and against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geoquant.errors import GridError
from geoquant.grids import Grid, Integer, exact, fitting

DISTRIBUTIONS = {
    "normal": lambda shape: torch.randn(shape),
    "heavy": lambda shape: torch.distributions.StudentT(3.0).sample(shape),
    "uniform": lambda shape: torch.rand(shape) - 0.4,
}


def error_at(grid: Grid, matrix: Tensor, scale: Tensor, importance: Tensor | None = None) -> Tensor:
    """Σ h (w − Q(w))² of each row for scales (candidates, rows), by brute force over levels, in float64."""
    points = scale[..., None, None] * grid.format.levels
    nearest = (matrix.double()[..., None] - points).square().amin(-1)
    return (nearest if importance is None else importance * nearest).sum(-1)


def best_of_many(grid: Grid, matrix: Tensor, importance: Tensor | None = None, signs: tuple[int, ...] = (1,)) -> Tensor:
    """The least error of each row over 1,500 scales from far above to far below the max-abs scale."""
    top = 2.2 * matrix.abs().amax(1).double() / grid.format.reach
    found = []
    for sign in signs:
        for part in torch.logspace(0, -2.5, 1500, dtype=torch.float64).split(100):
            found.append(error_at(grid, matrix, sign * part[:, None] * top, importance).amin(0))
    return torch.stack(found).amin(0)


def error_found(grid: Grid, matrix: Tensor, importance: Tensor | None = None) -> Tensor:
    scales = grid.fit(matrix, importance)
    return error_at(grid, matrix, scales.scale[:, 0].double()[None], importance)[0]


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("length", [9, 30])
@pytest.mark.parametrize("name", ["ternary", "binary", "int2", "int2:narrow", "int3", "int4", "fp4_e2m1:channel"])
def test_exact_searches_are_not_beaten_by_any_scale(name, length, kind):
    grid, matrix = Grid.parse(f"{name}:fp32"), DISTRIBUTIONS[kind]((6, length))
    assert (error_found(grid, matrix) <= best_of_many(grid, matrix) * (1 + 1e-6)).all()


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("name", ["int4", "int5:narrow", "fp4_e2m1:channel"])
def test_sweeps_come_close_to_the_best_of_many_scales(name, kind, monkeypatch):
    monkeypatch.setattr(exact, "_SHORT_ROW", 0)
    grid, matrix = Grid.parse(f"{name}:fp32"), DISTRIBUTIONS[kind]((6, 300))
    ratio = error_found(grid, matrix) / best_of_many(grid, matrix)
    assert ratio.mean() < 1.005
    assert ratio.max() < 1.03


@pytest.mark.parametrize("name", ["int3", "int4", "fp4_e2m1:channel"])
def test_sweep_and_exact_search_agree_on_long_rows(name, monkeypatch):
    grid, matrix = Grid.parse(f"{name}:fp32"), torch.randn(4, 800)
    monkeypatch.setattr(exact, "_SHORT_ROW", 1 << 30)
    sharp = error_found(grid, matrix)
    monkeypatch.setattr(exact, "_SHORT_ROW", 0)
    swept = error_found(grid, matrix)
    assert (swept >= sharp * (1 - 1e-6)).all()
    assert (swept <= sharp * 1.005).all()


def test_binary_scale_is_the_mean_magnitude():
    matrix = torch.randn(5, 40)
    scale = Grid.parse("binary:fp32").fit(matrix).scale[:, 0]
    assert torch.allclose(scale, matrix.abs().mean(1), rtol=1e-6)


def test_ternary_scale_is_the_best_mean_of_the_largest():
    """Keeping the k largest of n costs Σw² − (Σ_k |w|)²/k; the best k by hand against the search."""
    matrix = torch.randn(5, 40)
    ranked = matrix.double().abs().sort(descending=True).values
    kept = ranked.cumsum(1)
    count = torch.arange(1, 41)
    best = (kept.square() / count).argmax(1)
    expected = kept.gather(1, best[:, None])[:, 0] / (best + 1)
    assert torch.allclose(Grid.parse("ternary:fp32").fit(matrix).scale[:, 0].double(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("int2", 1e-6), ("int3", 1e-6), ("ternary", 1e-6), ("binary", 1e-6), ("int6", 0.1)]
)
def test_importance_moves_the_optimum(name, tolerance):
    grid, matrix = Grid.parse(f"{name}:fp32"), torch.randn(5, 50)
    importance = torch.rand(50).pow(4)
    weighted = error_found(grid, matrix, importance)
    assert (weighted / best_of_many(grid, matrix, importance)).mean() <= 1 + tolerance
    plain = error_at(grid, matrix, grid.fit(matrix).scale[:, 0].double()[None], importance)[0]
    assert weighted.sum() < plain.sum()


def test_constant_importance_changes_nothing():
    grid, matrix = Grid.parse("int4"), torch.randn(3, 70)
    assert torch.equal(grid.fit(matrix, torch.full((70,), 4.0)).scale, grid.fit(matrix).scale)


def test_weights_without_importance_do_not_matter():
    grid, matrix = Grid.parse("int3:fp32"), torch.randn(2, 20)
    importance = torch.ones(20)
    importance[10:] = 0
    half = grid.fit(matrix[:, :10])
    matrix[:, 10:] /= 10  # inside the range of the others
    if (matrix[:, :10].abs().amax(1) >= matrix[:, 10:].abs().amax(1)).all():
        assert torch.allclose(grid.fit(matrix, importance).scale, half.scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("importance", "message"),
    [(torch.ones(3), "does not fit"), (-torch.ones(4), "not negative"), (torch.full((4,), torch.nan), "finite")],
)
def test_bad_importance_is_refused(importance, message):
    with pytest.raises(GridError, match=message):
        Grid.parse("int3").fit(torch.randn(2, 4), importance)


def test_signed_scales_flip_the_extra_level_where_that_helps():
    signed, plain = Grid.parse("int2:mse-signed:fp32"), Grid.parse("int2:fp32")
    matrix = torch.tensor([[2.0, 1.0, -1.0, 0.0], [-2.0, 1.0, -1.0, 0.0]])
    assert signed.fit(matrix).scale[:, 0].tolist() == [-1.0, 1.0]
    assert signed.quantize(matrix).dequantize().tolist() == matrix.tolist()
    assert plain.quantize(matrix).dequantize()[0].tolist() != matrix[0].tolist()


@pytest.mark.parametrize("name", ["int2", "int3", "int5"])
def test_signed_searches_are_as_good_as_any_scale_of_either_sign(name):
    grid, matrix = Grid.parse(f"{name}:mse-signed:fp32"), torch.randn(5, 30)
    best = best_of_many(grid, matrix, signs=(1, -1))
    assert (error_found(grid, matrix) <= best * 1.01).all()
    assert (error_found(grid, matrix) <= error_found(Grid.parse(f"{name}:fp32"), matrix) * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ["int4:narrow", "ternary", "fp8_e4m3", "int3:affine"])
def test_signed_is_plain_where_signs_are_free_already(name):
    matrix = torch.randn(3, 30)
    signed, plain = Grid.parse(f"{name}:mse-signed"), Grid.parse(name)
    assert torch.equal(signed.quantize(matrix).dequantize(), plain.quantize(matrix).dequantize())


def test_signed_scales_need_a_sign():
    with pytest.raises(GridError, match="e8m0 scales have no sign"):
        Grid.parse("int3:mse-signed:e8m0")


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_affine_search_against_every_zero_point_and_scale(bits, shift):
    grid, matrix = Grid.parse(f"int{bits}:affine:fp32"), torch.randn(6, 60) + shift
    span = matrix.amax(1).clamp(min=0).double() - matrix.amin(1).clamp(max=0).double()
    candidates = torch.logspace(0.1, -1.3, 400, dtype=torch.float64)[:, None] * span / (2**bits - 1)
    best = torch.full((6,), torch.inf, dtype=torch.float64)
    for zero in range(2**bits):
        points = candidates[..., None, None] * (grid.format.levels - zero)
        best = torch.minimum(best, (matrix.double()[..., None] - points).square().amin(-1).sum(-1).amin(0))
    found = (grid.quantize(matrix).dequantize().double() - matrix.double()).square().sum(1)
    assert (found / best).mean() < 1.03
    assert (found <= best * 1.2).all()


@pytest.mark.parametrize("name", ["int3", "int5", "int6:narrow", "int8", "int3:affine", "int4:affine", "int6:affine"])
def test_a_matrix_that_lies_on_a_grid_is_kept_exactly(name):
    """Its codes leave the end levels unused, so max-abs misses the scale; least squares finds it again."""
    grid = Grid.parse(f"{name}:fp32")
    low, high = int(grid.format.levels[1]), int(grid.format.levels[-2])
    codes = torch.randint(low, high + 1, (5, 300)) - (high + low) // 2 * grid.format.has_zero_point
    matrix = 0.37 * codes
    assert torch.allclose(grid.quantize(matrix).dequantize(), matrix, rtol=1e-5, atol=1e-6)


def test_a_lone_outlier_is_clipped_when_that_is_cheaper():
    matrix = torch.randn(1, 4096)
    matrix[0, 0] = 20.0
    grid = Grid.parse("int3:fp32")
    assert float(grid.fit(matrix).scale) < 0.3 * 2 * 20 / 7
    assert float(error_found(grid, matrix)) <= float(best_of_many(grid, matrix)) * 1.001


@pytest.mark.parametrize("name", ["int5", "int3:affine", "ternary", "fp8_e4m3"])
@pytest.mark.parametrize("power", [-90, 90])
def test_squares_of_tiny_and_huge_weights_neither_vanish_nor_overflow(name, power):
    grid, matrix = Grid.parse(f"{name}:fp32"), torch.randn(3, 700)
    plain, moved = grid.quantize(matrix), grid.quantize(matrix * 2.0**power)
    assert torch.equal(moved.codes, plain.codes)
    assert torch.equal(moved.scales.scale, plain.scales.scale * 2.0**power)


@pytest.mark.parametrize("name", ["int3", "int5", "int4:affine", "int4:tensor", "int5:group16"])
def test_blocks_change_nothing(name, monkeypatch):
    """A matrix cut into many blocks, rows into many pieces: the same scales up to the order of float sums."""
    grid, matrix = Grid.parse(f"{name}:fp32"), torch.randn(40, 100)
    whole = grid.quantize(matrix)
    monkeypatch.setattr(fitting, "_BLOCK", 64)
    pieces = grid.quantize(matrix)
    errors = [(result.dequantize() - matrix).square().sum() for result in (whole, pieces)]
    assert torch.isclose(*errors, rtol=1e-3)
    assert torch.equal(grid.decode(whole.codes, whole.scales), whole.grid.decode(whole.codes, whole.scales))
    assert torch.equal(grid.encode(matrix, whole.scales), whole.codes)


def test_unknown_scaling():
    with pytest.raises(GridError, match="'maxabs'"):
        Grid(Integer(3), scaling="maxab")
