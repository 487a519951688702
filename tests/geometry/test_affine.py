"""What autograd's graph shows: piecewise affine or not, how often used, and when it cannot know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geoquant.errors import ModelError
from geoquant.geometry import hessian_traces
from geoquant.geometry.affine import structure_of

W = torch.nn.Parameter
AFFINE = {
    "linear": lambda w, x: F.linear(x, w),
    "relu": lambda w, x: torch.relu(x @ w),
    "leaky relu and hardtanh": lambda w, x: F.hardtanh(F.leaky_relu(x @ w, 0.2)),
    "max pooling": lambda w, x: F.max_pool1d((x @ w).unsqueeze(1), 2),
    "gated by data": lambda w, x: (x @ w) * x.sigmoid(),
    "divided by data": lambda w, x: (x @ w) / (1 + x.square()),
    "cat, slices, padding": lambda w, x: F.pad(torch.cat([x @ w, x], 1)[:, ::2], (1, 1)),
    "softmax of data": lambda w, x: (x @ x.T).softmax(1) @ x @ w,
    "abs and clamp": lambda w, x: (x @ w).abs().clamp(max=1),
    "mean and reshape": lambda w, x: (x @ w).view(-1, 2).mean(1),
}
CURVED = {
    "square": lambda w, x: (x @ w).square(),
    "product with itself": lambda w, x: (x @ w) * (x @ w),
    "product of two uses": lambda w, x: x @ w @ w,
    "divided by itself": lambda w, x: x / (2 + (x @ w).abs()),
    "tanh": lambda w, x: (x @ w).tanh(),
    "gelu": lambda w, x: F.gelu(x @ w),
    "softmax": lambda w, x: (x @ w).softmax(1),
    "norm": lambda w, x: F.layer_norm(x @ w, (4,)),
    "batch statistics": lambda w, x: F.batch_norm(x @ w, None, None, training=True),
    "swish by hand": lambda w, x: (x @ w) * (x @ w).sigmoid(),
    "in-place write": lambda w, x: torch.zeros(3, 4).index_copy_(0, torch.arange(3), (x @ w).exp()),
}


def _second_derivative(function, weight, x):
    def weighted(w):
        outputs = function(w, x)
        return (outputs * torch.arange(1.0, 1 + outputs.numel()).view_as(outputs)).sum()

    return float(torch.autograd.functional.hessian(weighted, weight.detach()).abs().max())


@pytest.mark.parametrize("name", AFFINE)
def test_affine_is_recognised_and_is_affine(name):
    weight, x = W(torch.randn(4, 4)), torch.randn(3, 4)
    assert structure_of(AFFINE[name](weight, x), [weight]).affine == (True,)
    assert _second_derivative(AFFINE[name], weight, x) == 0


@pytest.mark.parametrize("name", CURVED)
def test_curved_is_never_taken_for_affine(name):
    weight, x = W(torch.randn(4, 4)), torch.randn(3, 4)
    assert structure_of(CURVED[name](weight, x), [weight]).affine == (False,)
    assert _second_derivative(CURVED[name], weight, x) > 0


def test_each_parameter_is_judged_alone():
    first, second = W(torch.randn(4, 4)), W(torch.randn(4, 4))
    found = structure_of((torch.randn(3, 4) @ first).relu() @ second, [first, second])
    assert found.affine == (True, True)  # jointly bilinear, affine in each
    assert found.uses == (1, 1)
    found = structure_of((torch.randn(3, 4) @ first).sigmoid() @ second @ second, [first, second])
    assert found.affine == (False, False)
    assert found.uses == (1, 2)


def test_unused_parameters_are_affine_unless_a_python_function_may_hide_them():
    weight, x = W(torch.randn(4, 4)), torch.randn(3, 4, requires_grad=True)
    assert structure_of(x.sum(1), [weight]).affine == (True,)

    class Hides(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    found = structure_of(Hides.apply(x), [weight])
    assert found.opaque
    assert found.affine == (False,)


def test_weights_hidden_by_reentrant_checkpointing_do_not_count_as_zero():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.inner, x.requires_grad_(), use_reentrant=True)

    batches = [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))]
    for method in ("auto", "hutchinson"):
        with pytest.raises(ModelError, match="use_reentrant=False"):
            hessian_traces(Checkpointed(), batches, method=method)
