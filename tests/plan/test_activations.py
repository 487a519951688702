"""Activation grids in solved plans: their scales count in bytes, their bits in bit-operations."""

from __future__ import annotations

from pathlib import Path

import pytest

import geoquant as gq
from geoquant.errors import BudgetError
from geoquant.plan import Budget, Plan, diff_text, uniform_plan
from geoquant.sensitivity import Profile, profile
from nets import small_batches, small_net


@pytest.fixture(scope="module")
def measured() -> Profile:
    return profile(small_net(), small_batches(), grids=["int2", "int4", "int8"], predictors=["weight_error"])


@pytest.mark.parametrize("activations", ["int8:affine", "int4:token", {"re:.*": "int8", "stem": None}])
def test_byte_budgets_hold_the_scales_and_keep_them_when_resolved(
    measured: Profile, activations: object, tmp_path: Path
) -> None:
    smallest = gq.allocate(measured, Budget(average_bits=8), menu=["int2"], activations=activations)
    for size in range(smallest.bytes, smallest.bytes + 300, 37):
        plan = gq.allocate(measured, Budget(bytes=size), activations=activations)
        assert plan.bytes <= size
        assert plan.activations == smallest.activations
    net = small_net()
    gq.quantize_(net, plan, small_batches())
    assert gq.save(net, plan, tmp_path).stat().st_size == plan.bytes
    with pytest.raises(BudgetError, match=f"{smallest.bytes:,} bytes"):
        gq.allocate(measured, Budget(bytes=smallest.bytes - 1), activations=activations)
    other = Plan.load(tmp_path).resolve(bytes=smallest.bytes)
    assert other.activations == smallest.activations
    assert other.bytes == smallest.bytes


def test_without_activations_the_same_plan_is_smaller(measured: Profile) -> None:
    plain, static = (gq.allocate(measured, Budget(average_bits=5), activations=each) for each in (None, "int8"))
    assert plain.names == static.names
    assert static.bytes > plain.bytes


def test_bit_operations_count_the_bits_of_each_input(measured: Profile) -> None:
    """By hand: multiplications × weight bits × bits of this layer's input, float ones counting 32."""
    activations = {"stem": "int8:affine", "block": "int4:affine"}
    budget = Budget(average_bits=9)
    plan = gq.allocate(measured, budget, activations=activations)
    widths = [8, 4, 32]
    counts = zip(measured.macs, plan.grids, widths, strict=True)
    total = sum(count * grid.bits * width for count, grid, width in counts)
    assert plan.bit_operations == total
    exact = gq.allocate(measured, Budget(bit_operations=total), activations=activations)
    assert exact.bit_operations == total
    assert exact.names == plan.names
    below = gq.allocate(measured, Budget(bit_operations=total - 1), activations=activations)
    assert below.bit_operations is not None
    assert below.bit_operations < total


def test_grids_put_on_later_stay_when_resolved(measured: Profile) -> None:
    plan = gq.allocate(measured, Budget(average_bits=5)).with_activations({"re:add.*": "int8"}, small_net())
    assert [name for name, _ in plan.activations] == ["add:0", "add:1"]
    assert plan.resolve(average_bits=4).activations == plan.activations


def test_plans_keep_their_activations_and_show_them(tmp_path: object) -> None:
    model = small_net()
    wanted = {"re:.*": "int8:affine", "stem": None, "head": "int4:affine:token"}
    plan = uniform_plan(model, "int4", activations=wanted)
    assert plan.activations == (
        ("block", "int8:affine"),
        ("head", "int4:affine:token"),
        ("add:0", "int8:affine"),
        ("add:1", "int8:affine"),
    )
    assert Plan.load(plan.save(tmp_path)) == plan  # type: ignore[arg-type]
    lines = str(plan).splitlines()
    assert lines[0].endswith("input")
    assert lines[2].endswith("int8:affine")
    assert "4 quantized activations" in lines[-1]
    assert "input" not in str(uniform_plan(model, "int4"))
    assert plan.with_activations(None) == uniform_plan(model, "int4")
    difference = diff_text(plan, plan.with_activations({"block": "int8:affine", "head": "int8"})).splitlines()
    assert difference[-4:] == [
        "input  first              second",
        "head   int4:affine:token  int8",
        "add:0  int8:affine        float",
        "add:1  int8:affine        float",
    ]


def test_plan_files_without_activations_stay_readable(tmp_path: object) -> None:
    from geoquant.plan.plan import _ADAPTER

    plan = uniform_plan(small_net(), "int4")
    document = plan.to_json()
    del document["activations"]
    assert _ADAPTER.validate_python(document) == plan
