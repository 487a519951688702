"""Operations without modules, attention, and what stays in float: rounded where they are used, or named."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.errors import LayerNameError, ModelError, PlanError
from geoquant.grids import ActivationGrid
from geoquant.models import find_operations, inference
from geoquant.plan import Plan, uniform_plan
from geoquant.quantize import quantize, quantized_state
from nets import small_batches, small_net


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


def test_layers_and_operations_together() -> None:
    """Rounding a layer's input adds a zero point; that addition is none of the model's."""
    model, batches = small_net(), small_batches(3, 32)
    wanted = {"stem": "int5:affine", "block": "int4:affine", "add:0": "int4:affine", "add:1": "int3:affine"}
    done = quantize(model, uniform_plan(model, "fp32", activations=wanted), batches, norms="none")
    scales, x = quantized_state(done).scales, batches[0][0]

    def entering(value: Tensor, name: str) -> Tensor:
        return ActivationGrid.parse(wanted[name]).quantize(value, scales[name])

    assert all(each.scale > 0 for each in scales.values())
    with inference(done), inference(model):
        stem = torch.relu(model.norm(model.stem(entering(x, "stem"))))
        total = entering(model.block(entering(stem, "block")), "add:0") + entering(stem, "add:1")
        torch.testing.assert_close(done(x), model.head(torch.relu(total).mean((2, 3))), rtol=0, atol=1e-6)


def test_an_error_inside_the_model_leaves_no_watch_behind() -> None:
    from geoquant.models.intercept import _RUNNING

    model, batches = small_net(), small_batches()
    done = gq.quantize_(model, uniform_plan(model, "int4", activations={"re:add.*": "int8"}), batches)
    with pytest.raises(RuntimeError):
        done(torch.zeros(1, 3, 8, 8))
    assert _RUNNING.frames == []
    assert _RUNNING.mode is None


def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + x if x.sum() > -1e9 else x

    model = Branching()
    plan = uniform_plan(model, "int8", activations="int8")
    done = quantize(model, plan, [torch.randn(8, 4)])
    assert "cannot be traced" in " ".join(quantized_state(done).in_float)
    assert (
        quantized_state(gq.load(gq.save(done, plan, tmp_path), Branching())).in_float == quantized_state(done).in_float
    )
    plan = Plan(plan.inventory, ("int8",), activations=(("add:0", "int8"),))
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
def test_attention_rounds_query_key_and_value_and_names_the_rest(kdim: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Encoder(kdim).eval()
    batches = [torch.randn(8, 5, 8) for _ in range(2)]
    plan = uniform_plan(model, "fp32", activations="int4:affine")
    assert "attn.out_proj" not in dict(plan.activations)
    done = quantize(model, plan, batches, norms="none")
    state = quantized_state(done)
    assert any(line.startswith("attn.out_proj: ") for line in state.in_float)
    assert any(line.startswith("attn: ") for line in state.in_float)
    loaded = gq.load(gq.save(done, plan, tmp_path), Encoder(kdim))
    assert quantized_state(loaded).in_float == state.in_float
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


def test_inputs_that_no_batch_reached_are_still_named_after_loading(tmp_path: Path) -> None:
    model, zeros = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), [torch.zeros(8, 4)]
    plan = uniform_plan(model, "int8", activations="int8")
    done = quantize(model, plan, zeros, norms="none")
    (line,) = quantized_state(done).in_float
    assert line.startswith("0: no calibration batch")
    assert quantized_state(gq.load(gq.save(done, plan, tmp_path), model)).in_float == (line,)
    whole = quantize(model, plan, [torch.randn(8, 4)], norms="none")
    assert quantized_state(gq.load(gq.save(whole, plan, tmp_path), model)).in_float == ()
