"""The main path on a real pretrained net and real images, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import geoquant as gq
from geoquant.cli.inputs import Normalize, read_batches, read_model
from geoquant.models import inference
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize

WEIGHTS = Path(os.environ.get("GEOQUANT_WEIGHTS_DIR", "/nonexistent")) / "cifar10_resnet20.safetensors"
MODEL = "geoquant.models.zoo:resnet20_cifar10"

pytestmark = pytest.mark.skipif(
    not (WEIGHTS.exists() and os.environ.get("GEOQUANT_DATA_DIR")),
    reason="needs GEOQUANT_WEIGHTS_DIR with cifar10_resnet20.safetensors and GEOQUANT_DATA_DIR with cifar10",
)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return read_model(MODEL, WEIGHTS)


@pytest.fixture(scope="module")
def test_images() -> list[object]:
    return list(read_batches("cifar10", "test", Normalize.imagenet, WEIGHTS, 250, 2000))


def test_float_accuracy(net: nn.Module, test_images: list[object]) -> None:
    assert gq.evaluate(net, test_images).accuracy.value == pytest.approx(0.917, abs=0.015)


def test_a_guided_plan_of_three_bits_beats_uniform_by_far_and_is_stored_to_the_byte(
    net: nn.Module, test_images: list[object], tmp_path: Path
) -> None:
    calibration = read_batches("cifar10", "train", Normalize.imagenet, WEIGHTS, 128, 128, 0)
    profile = gq.profile(net, calibration, predictors=["weight_error"])
    uniform = uniform_plan(net, "int3")
    plan = gq.allocate(profile, gq.Budget(bytes=uniform.bytes))
    guided = quantize(net, plan)
    path = gq.save(guided, plan, tmp_path)
    assert path.stat().st_size == plan.bytes <= uniform.bytes
    reloaded = gq.load(path, read_model(MODEL, None))
    with inference(guided), inference(reloaded):
        assert torch.equal(guided(test_images[0][0]), reloaded(test_images[0][0]))
    accuracy = gq.evaluate(guided, test_images).accuracy
    rival = gq.evaluate(quantize(net, uniform), test_images).accuracy
    assert accuracy.value - rival.value > 5 * (accuracy.stderr + rival.stderr)


def test_integer_kernels_of_onnx_runtime_keep_the_logits_and_the_accuracy(
    net: nn.Module, test_images: list[object], tmp_path: Path
) -> None:
    from geoquant.export.onnx_session import feeds, open_session

    calibration = read_batches("cifar10", "train", Normalize.imagenet, WEIGHTS, 64, 64, 0)
    plan = uniform_plan(net, "int8", activations={"re:.*": "int8:affine"})
    rounded = quantize(net, plan, calibration, effort="fast")
    gq.export.onnx(rounded, plan, tmp_path / "resnet20.onnx", example=calibration[0])
    session = open_session(tmp_path / "resnet20.onnx")
    images, labels = test_images[0]  # type: ignore[misc]
    found = torch.from_numpy(session.run(None, feeds(session, images))[0])
    with inference(rounded):
        expected = rounded(images)
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.05
    accuracies = [float((each.argmax(1) == labels).float().mean()) for each in (found, expected)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)
