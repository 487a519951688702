"""Folding keeps the function, only where nothing else reads the layer's output."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.errors import ModelError
from geoquant.models import apply_folds_, fold_batch_norm, fold_batch_norm_, folded_pairs
from geoquant.models.zoo import digits_cnn, resnet18_imagenet, resnet20_cifar10


def lively(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and affine values that matter."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 3)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    ("build", "shape", "pairs"),
    [
        (resnet20_cifar10, (2, 3, 32, 32), 19),
        (digits_cnn, (2, 1, 8, 8), 3),
        (lambda: resnet18_imagenet(5), (1, 3, 64, 64), 20),
        (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)), (2, 4, 5, 5), 1),
        (lambda: nn.Sequential(nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 5), 1),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8, affine=False)), (2, 4, 5, 5), 1),
        (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (2, 2, 4, 4, 4), 1),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)), (3, 4), 1),
    ],
)
def test_folding_keeps_the_function(
    build: Callable[[], nn.Module], shape: tuple[int, ...], pairs: int, dtype: torch.dtype, tolerance: float
) -> None:
    model = lively(build()).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    model.requires_grad_(False)
    before = model(x)
    folded = fold_batch_norm(model)
    assert len(folded_pairs(folded)) == pairs
    assert folded_pairs(model) == ()
    after = folded(x)
    assert torch.equal(model(x), before)  # the original is untouched
    assert float((after - before).abs().max() / before.abs().max()) < tolerance
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())


class Branches(nn.Module):
    """Reads the first convolution twice, the second once, and uses the third's norm for two layers."""

    def __init__(self, dynamic: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.norm1, self.norm2, self.shared = (nn.BatchNorm2d(4) for _ in range(3))
        self.dynamic = dynamic

    def forward(self, x: Tensor) -> Tensor:
        if self.dynamic and x.sum() > 1e9:  # defeats symbolic tracing
            return x
        y = self.conv1(x)
        x = self.norm1(y) + y
        x = self.norm2(self.conv2(x))
        return self.shared(self.conv3(x)) + self.shared(self.conv4(x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_only_sole_readers_are_folded(dynamic: bool) -> None:
    model = lively(Branches(dynamic)).double()
    x = torch.randn(2, 4, 3, 3).double()
    before = model(x)
    assert fold_batch_norm_(model, x) == (("conv2", "norm2"),)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


class Between(nn.Module):
    """Has an operation between layer and norm, or returns the layer's output beside the norm's."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv, self.norm, self.form = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), form

    def forward(self, x: Tensor) -> object:
        if x.sum() > 1e9:
            return x
        y = self.conv(x)
        if self.form == "relu":
            return self.norm(y.relu())
        if self.form == "in place":
            return self.norm(y.mul_(2))
        if self.form == "view":
            return self.norm(y.transpose(2, 3))
        return self.norm(y), y


@pytest.mark.parametrize("form", ["relu", "in place", "view", "returned"])
def test_watching_sees_what_stands_between(form: str) -> None:
    assert fold_batch_norm_(lively(Between(form)), torch.randn(2, 4, 3, 3)) == ()


def test_a_model_that_cannot_be_traced_asks_for_an_example() -> None:
    with pytest.raises(ModelError, match="pass example="):
        fold_batch_norm_(Branches(dynamic=True))


def test_tracing_and_watching_agree() -> None:
    for build, shape in ((resnet20_cifar10, (2, 3, 32, 32)), (lambda: resnet18_imagenet(5), (1, 3, 64, 64))):
        traced = fold_batch_norm_(build())

        class Untraceable(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x) if float(x.sum()) < 1e9 else x

        watched = fold_batch_norm_(Untraceable(build()), torch.randn(shape))
        assert tuple((a.removeprefix("inner."), b.removeprefix("inner.")) for a, b in watched) == traced


class Standardised(nn.Conv2d):
    """Uses another weight than the stored one: folding into the stored one would be wrong."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Standardised(3, 4, 1), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)),
    ],
)
def test_what_would_change_the_function_stays(model: nn.Module) -> None:
    model.eval()
    x = torch.randn(2, 3, 4, 4)
    before = model(x)
    assert fold_batch_norm_(model, x) == ()
    assert torch.equal(model(x), before)


def test_tied_and_hooked_layers_stay() -> None:
    tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    tied[2].weight = tied[0].weight
    assert fold_batch_norm_(tied) == ()
    hooked = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    hooked[0].register_forward_hook(lambda *_: None)
    assert fold_batch_norm_(hooked) == ()


def test_folds_apply_to_a_fresh_model_and_its_weights_load() -> None:
    """What `load` does: structure first, then tensors; the logits are the same bits."""
    model = lively(resnet20_cifar10())
    pairs = fold_batch_norm_(model)
    fresh = resnet20_cifar10().eval()
    assert apply_folds_(fresh, pairs) == pairs == folded_pairs(fresh)
    fresh.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh(x), model(x))
    assert folded_pairs(copy.deepcopy(fresh)) == pairs


def test_folds_of_another_model_are_refused_before_any_change() -> None:
    model = resnet20_cifar10()
    names = list(model.state_dict())
    for wrong in ([("conv1", "bn1"), ("conv9", "bn1")], [("conv1", "bn1"), ("linear", "bn1")], [("conv1", "layer1")]):
        with pytest.raises(ModelError, match=r"no layer 'conv9'|cannot fold"):
            apply_folds_(model, wrong)
    assert list(model.state_dict()) == names


def test_parameters_keep_their_identity_and_grad_flag() -> None:
    model = resnet20_cifar10()
    model.conv1.weight.requires_grad_(False)
    weight = model.conv1.weight
    fold_batch_norm_(model)
    assert model.conv1.weight is weight
    assert not model.conv1.bias.requires_grad
    assert model.layer1[0].conv1.bias.requires_grad
