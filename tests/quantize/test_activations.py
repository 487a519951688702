"""Activations on their grids: ranges by hand, the quantized prefix, operations without modules, and what stays."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.errors import LayerNameError, ModelError, PlanError
from geoquant.geometry import range_of
from geoquant.grids import RANGE_METHODS, ActivationGrid
from geoquant.models import find_operations, inference
from geoquant.plan import Plan, diff_text, uniform_plan
from geoquant.quantize import BlockTuning, NetworkTuning, quantize, quantized_state
from geoquant.quantize.activations import quantizers_of
from geoquant.quantize.clipping import RANGES, fit_scale
from nets import small_batches, small_net

WIDE = ("int8:affine", "int8", "int4:affine")


def seen_by(model: nn.Module, name: str, batch: object) -> Tensor:
    """Return what the layer's own forward receives, after all hooks."""
    found = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0].detach().clone()))
    with inference(model):
        model(batch)
    handle.remove()
    return found[0]


# Range methods.


def heavy_tailed(seed: int = 0, positive: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(20_000, generator=generator)
    values[:5] *= 40.0
    return values.abs() if positive else values


@pytest.mark.parametrize("method", sorted(RANGES.names()))
@pytest.mark.parametrize("grid", WIDE)
@pytest.mark.parametrize("positive", [True, False])
def test_every_range_method(method: str, grid: str, positive: bool) -> None:
    """Laws: within what was seen, zero included; the same for a permutation; in units of the data."""
    values = heavy_tailed(positive=positive)
    format = ActivationGrid.parse(grid).with_range(method)
    low, high = RANGES[method](range_of([values]), format)
    reach = float(values.abs().max())
    assert -reach * 1.0001 <= low <= 0.0 or low == pytest.approx(0, abs=1e-2)
    assert 0 < high <= reach * 1.0001
    assert RANGES[method](range_of([values.flip(0)[:7000], values.flip(0)[7000:]]), format) == pytest.approx(
        (low, high)
    )
    doubled = RANGES[method](range_of([2 * values]), format)
    assert doubled == pytest.approx((2 * low, 2 * high), rel=0.02, abs=1e-6)


def test_methods_of_the_registry_are_those_that_grids_name() -> None:
    assert sorted(RANGE_METHODS) == RANGES.names()


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("grid", ["int4:affine", "int4", "int3:narrow", "fp8_e4m3"])
def test_mse_is_the_best_of_all_methods_and_of_a_scan(grid: str, positive: bool) -> None:
    values = heavy_tailed(positive=positive)
    seen = range_of([values])

    def error(low: float, high: float) -> float:
        base = ActivationGrid.parse(grid)
        return float((base.quantize(values, base.cover(low, high)) - values).square().mean())

    found = {}
    for method in RANGE_METHODS:
        found[method] = error(*RANGES[method](seen, ActivationGrid.parse(grid).with_range(method)))
    reach = float(values.abs().max())
    scan = min(error(0.0 if positive else -share * reach, share * reach) for share in [k / 400 for k in range(1, 401)])
    assert found["mse"] <= 1.01 * min(found.values())
    assert found["mse"] <= 1.02 * scan
    if grid != "fp8_e4m3":
        assert found["minmax"] > 3 * found["mse"], "the outliers must matter for this test to mean something"


def test_percentile_leaves_out_what_it_says() -> None:
    values = torch.arange(-500, 501).float()
    low, high = RANGES["percentile"](range_of([values]), ActivationGrid.parse("int8:percentile90"))
    assert low == pytest.approx(-450, rel=0.01)
    assert high == pytest.approx(450, rel=0.01)


def test_entropy_clips_outliers_and_keeps_a_uniform_distribution() -> None:
    grid = ActivationGrid.parse("int8:affine:entropy")
    uniform = torch.linspace(0, 1, 50_000)
    assert RANGES["entropy"](range_of([uniform]), grid)[1] == pytest.approx(1.0, rel=0.05)
    values = heavy_tailed(positive=True)
    assert RANGES["entropy"](range_of([values]), grid)[1] < 0.3 * float(values.max())


def test_nothing_but_zeros_has_scale_zero() -> None:
    for method in RANGE_METHODS:
        assert fit_scale(range_of([torch.zeros(5)]), ActivationGrid.parse("int8").with_range(method)).scale == 0


# On a model.


def test_every_layer_sees_few_levels_and_scales_are_of_the_quantized_prefix() -> None:
    model, batches = small_net(), small_batches(4, 32)
    done = quantize(model, uniform_plan(model, "int2", activations="int4:affine:minmax"), batches, norms="none")
    inputs = torch.cat([batch for batch, _ in batches])
    for name in ("stem", "block", "head"):
        assert len(seen_by(done, name, inputs).unique()) <= 16
    scale = quantized_state(done).scales["block"]
    prefix, float_prefix = (torch.relu(net.norm(net.stem(inputs))).detach() for net in (done, model))
    grid = ActivationGrid.parse("int4:affine:minmax")
    assert scale == grid.cover(float(prefix.min()), float(prefix.max()))
    assert scale != grid.cover(float(float_prefix.min()), float(float_prefix.max())), "the twin: the float prefix"


def test_rounding_sees_quantized_inputs() -> None:
    """GPTQ of the second layer with its inputs on four levels differs from that with float inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    batches = [torch.randn(64, 12) for _ in range(3)]
    with_inputs = quantize(model, uniform_plan(model, "int3", activations={"2": "int2:affine"}), batches)
    without = quantize(model, uniform_plan(model, "int3"), batches)
    assert torch.equal(with_inputs[0].weight, without[0].weight)
    assert not torch.equal(with_inputs[2].weight, without[2].weight)


def test_the_more_bits_the_nearer_to_float() -> None:
    model, batches = small_net(), small_batches(4, 32)
    logits = {}
    for bits in (2, 4, 8):
        done = quantize(model, uniform_plan(model, "fp32", activations=f"int{bits}:affine"), batches, norms="none")
        with inference(done), inference(model):
            logits[bits] = float((done(batches[0][0]) - model(batches[0][0])).square().mean())
    assert logits[8] < logits[4] / 20 < logits[2] / 100
    assert logits[8] > 0


def test_the_given_model_of_quantize_has_no_hooks() -> None:
    model, batches = small_net(), small_batches()
    quantize(model, uniform_plan(model, "int4", activations="int8:affine"), batches)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("activations", ["int4:affine", "int4:affine:token", {"re:.*": "int4:affine"}])
def test_hooks_follow_copies_and_ignore_state_dicts(activations: object) -> None:
    model, batches = small_net(), small_batches()
    keys = list(model.state_dict())
    done = gq.quantize_(copy.deepcopy(model), uniform_plan(model, "int4", activations=activations), batches)
    assert list(done.state_dict()) == keys
    twin = copy.deepcopy(done)
    twin.load_state_dict(done.state_dict())
    batch = batches[0][0]
    with torch.inference_mode():
        assert torch.equal(done(batch), twin(batch))
        plain = small_net()
        plain.load_state_dict(done.state_dict())
        assert not torch.equal(done(batch), plain(batch)), "without its hooks it would give other logits"


def test_gradients_pass_straight_through() -> None:
    model, batches = small_net(), small_batches()
    done = gq.quantize_(model, uniform_plan(model, "int4", activations={"re:.*": "int4:affine"}), batches)
    done(batches[0][0]).sum().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in done.parameters())


@pytest.mark.parametrize("refine", ["none", "blocks"])
def test_refinement_runs_with_quantized_activations(refine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [torch.randn(32, 8) for _ in range(2)]
    done = quantize(model, uniform_plan(model, "int3", activations="int4:affine"), batches, refine=refine)
    assert len(seen_by(done, "2", batches[0]).unique()) <= 16


def test_static_grids_need_calibration_and_dynamic_ones_do_not() -> None:
    model = small_net()
    with pytest.raises(PlanError, match="needs calibration"):
        gq.quantize_(model, uniform_plan(model, "int4", activations="int8:affine"))
    done = gq.quantize_(model, uniform_plan(model, "int4", activations="int4:affine:token"))
    batch = small_batches()[0][0]
    assert all(len(sample.unique()) <= 16 for sample in seen_by(done, "block", batch))
    assert len(seen_by(done, "block", batch).unique()) > 16


def test_a_layer_called_twice_is_ranged_over_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False)
            nn.init.eye_(self.layer.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(10 * self.layer(x))

    model = Twice()
    plan = uniform_plan(model, "fp32", activations="int8:affine:minmax")
    done = quantize(model, plan, [torch.tensor([[0.0, 1.0]])], norms="none")
    assert quantized_state(done).scales["layer"].scale == pytest.approx(10 / 255)


# Operations without a module.


class Attention(nn.Module):
    """One head, its products and softmax written out."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.soft = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.soft(self.q(x) @ self.k(x).transpose(1, 2) / x.shape[-1] + 0.5)
        return x + torch.matmul(weights, self.v(x))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention(), Attention()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.first(x) + self.second(x)).softmax(-1).mean(1))


def test_operands_have_names_in_the_order_of_execution() -> None:
    one = ("matmul:0", "matmul:1", "soft:0", "matmul_1:0", "matmul_1:1", "add_1:0", "add_1:1")
    inner = [f"{name}.{each}" for name in ("first", "second") for each in one]
    assert find_operations(TwoHeads()) == (*inner, "add:0", "add:1", "softmax:0")


def test_operands_are_rounded_where_they_are_used() -> None:
    """Against the same forward with the rounding written out; names that are not planned stay float."""
    torch.manual_seed(0)
    model = TwoHeads().eval()
    batches = [torch.randn(16, 5, 6) for _ in range(2)]
    wanted = {"first.matmul_1:0": "int3:affine", "second.soft:0": "int3:affine", "add:1": "int3:affine"}
    done = quantize(model, uniform_plan(model, "fp32", activations=wanted), batches, norms="none")
    scales = quantized_state(done).scales
    assert list(scales) == list(wanted)
    grid, x = ActivationGrid.parse("int3:affine"), batches[0]

    def attention(one: Attention, before: bool, after: bool, name: str) -> Tensor:
        scores = one.q(x) @ one.k(x).transpose(1, 2) / 6 + 0.5
        weights = torch.softmax(grid.quantize(scores, scales[f"{name}.soft:0"]) if before else scores, -1)
        weights = grid.quantize(weights, scales[f"{name}.matmul_1:0"]) if after else weights
        return x + weights @ one.v(x)

    with inference(model), inference(done):
        second = grid.quantize(attention(model.second, True, False, "second"), scales["add:1"])
        logits = model.head((attention(model.first, False, True, "first") + second).softmax(-1).mean(1))
        torch.testing.assert_close(done(x), logits, rtol=0, atol=1e-6)
        assert not torch.allclose(model(x), logits, atol=1e-4)


def test_in_place_additions_still_write_in_place() -> None:
    model, batches = small_net(), small_batches(3, 32)
    plan = uniform_plan(model, "fp32", activations={"add:0": "int4:affine", "add:1": "int4:affine"})
    done = quantize(model, plan, batches, norms="none")
    scales, grid, x = quantized_state(done).scales, ActivationGrid.parse("int4:affine"), batches[0][0]
    with inference(done), inference(model):
        stem = torch.relu(model.norm(model.stem(x)))
        total = grid.quantize(model.block(stem), scales["add:0"]) + grid.quantize(stem, scales["add:1"])
        torch.testing.assert_close(done(x), model.head(torch.relu(total).mean((2, 3))), rtol=0, atol=1e-6)


def test_an_error_inside_the_model_leaves_no_watch_behind() -> None:
    from geoquant.quantize.intercept import _RUNNING

    model, batches = small_net(), small_batches()
    done = gq.quantize_(model, uniform_plan(model, "int4", activations={"re:add.*": "int8"}), batches)
    with pytest.raises(RuntimeError):
        done(torch.zeros(1, 3, 8, 8))
    assert _RUNNING.frames == []
    assert _RUNNING.mode is None


def test_what_cannot_be_found_is_said() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + x if x.sum() > -1e9 else x

    model = Branching()
    done = quantize(model, uniform_plan(model, "int8", activations="int8"), [torch.randn(8, 4)])
    assert "cannot be traced" in " ".join(quantized_state(done).in_float)
    plan = Plan(uniform_plan(model, "int8").inventory, ("int8",), activations=(("add:0", "int8"),))
    with pytest.raises(ModelError, match="cannot be traced"):
        quantize(model, plan, [torch.randn(8, 4)])
    before, dynamic = (
        copy.deepcopy(model.state_dict()),
        replace(plan, activations=(("layer", "int8:token"), ("add:0", "int8:token"))),
    )
    with pytest.raises(ModelError, match="cannot be traced"):
        gq.quantize_(model, dynamic)
    assert torch.equal(model.layer.weight, before["layer.weight"]), "an error leaves the model as it was"
    assert not model.layer._forward_pre_hooks


class Encoder(nn.Module):
    def __init__(self, kdim: int | None = None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, kdim=kdim, vdim=kdim)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        other = x if self.attn.kdim == 8 else x[..., :4]
        return self.head(self.attn(x, other, value=other, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("kdim", [None, 4])
def test_attention_rounds_query_key_and_value_and_names_the_rest(kdim: int | None) -> None:
    torch.manual_seed(0)
    model = Encoder(kdim).eval()
    batches = [torch.randn(8, 5, 8) for _ in range(2)]
    plan = uniform_plan(model, "fp32", activations="int4:affine")
    assert "attn.out_proj" not in dict(plan.activations)
    done = quantize(model, plan, batches, norms="none")
    state = quantized_state(done)
    assert any(line.startswith("attn.out_proj: ") for line in state.in_float)
    assert any(line.startswith("attn: ") for line in state.in_float)
    x, grid = batches[0], ActivationGrid.parse("int4:affine")

    def rounded(value: Tensor, name: str) -> Tensor:
        return grid.quantize(value, state.scales[name])

    other = x if kdim is None else x[..., :4]
    names = ["attn.in_proj"] * 3 if kdim is None else ["attn.q_proj", "attn.k_proj", "attn.v_proj"]
    with inference(model), inference(done):
        entered = [rounded(each, name) for each, name in zip((x, other, other), names, strict=True)]
        hidden = model.attn(*entered, need_weights=False)[0].mean(1)
        torch.testing.assert_close(done(x), model.head(rounded(hidden, "head")), rtol=0, atol=1e-5)


def test_explicit_wishes_that_cannot_be_met() -> None:
    model = Encoder()
    with pytest.raises(PlanError, match=r"out_proj.*inside one operation"):
        uniform_plan(model, "int8", activations={"attn.out_proj": "int8"})
    with pytest.raises(PlanError, match="embedding reads indices"):
        uniform_plan(nn.Sequential(nn.Embedding(3, 2)), "int8", activations={"0": "int8"})
    with pytest.raises(LayerNameError):
        uniform_plan(model, "int8", activations={"nowhere": "int8"})
    with pytest.raises(LayerNameError):
        uniform_plan(gq.uniform_plan(small_net(), "int8").inventory, "int8", activations={"add:0": "int8"})


# Plans.


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


# Learned scales.


def test_a_spike_at_zero_does_not_shrink_the_entropy_range() -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    spike = torch.cat([values.abs(), torch.zeros(500_000)])
    ends = {
        name: RANGES["entropy"](range_of([each]), ActivationGrid.parse("int4:affine:entropy"))
        for name, each in {"plain": values.abs(), "spike": spike}.items()
    }
    assert ends["spike"] == pytest.approx(ends["plain"], rel=0.05)


@pytest.mark.parametrize("refine", ["network", "blocks"])
def test_refinement_mends_a_scale_that_the_range_got_wrong(refine: str) -> None:
    """Outliers stretch the min-max range; learning shrinks it. Scales in the state are those of the hooks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [torch.randn(64, 6) for _ in range(2)]
    batches[0][0, 0] = 30.0
    plan = uniform_plan(model, "fp32", activations={"0": "int4:affine:minmax"})
    tuning = {"network": NetworkTuning(steps=60, scales=0.02), "blocks": BlockTuning(steps=60, scales=0.02)}[refine]
    plain = quantize(model, plan, batches, norms="none")
    done = quantize(model, plan, batches, norms="none", refine=tuning)
    scales = [quantized_state(each).scales["0"].scale for each in (plain, done)]
    assert scales[1] < 0.9 * scales[0]
    assert quantizers_of(done)[0].scale == quantized_state(done).scales["0"]
    assert quantizers_of(done)[0].stretch is None
    assert float(gq.divergence(model, done, batches).value) < float(gq.divergence(model, plain, batches).value)


def test_learning_that_does_not_help_is_undone() -> None:
    model, batches = small_net(), small_batches()
    plan = uniform_plan(model, "int4", activations={"re:.*": "int4:affine"})
    plain = quantize(model, plan, batches)
    wild = quantize(model, plan, batches, refine=NetworkTuning(steps=3, codes=9.0, scales=3.0, free=9.0))
    assert quantized_state(plain).scales == quantized_state(wild).scales
    assert torch.equal(outputs_of(plain, batches), outputs_of(wild, batches))


def outputs_of(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    with inference(model):
        return torch.cat([model(inputs) for inputs, _ in batches])
