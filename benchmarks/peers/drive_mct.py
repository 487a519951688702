"""Sony's Model Compression Toolkit: mixed-precision search over weight widths, symmetric thresholds per channel.

Options: ``activations`` (8 as its platforms have it, 32 for weights only), ``epochs`` (of its gradient-based rounding
over the calibration images; 0 for round to nearest) and ``score_images`` (for the sensitivity of the search).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

# MCT needs torchvision, whose wheels are for CUDA; with a CPU torch it loads once these names are declared.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import model_compression_toolkit as mct  # noqa: E402
from driving import SCALE_BITS, Job, LayerFormat  # noqa: E402
from mct_quantizers import QuantizationMethod  # noqa: E402
from model_compression_toolkit.target_platform_capabilities.constants import BIAS_ATTR, KERNEL_ATTR  # noqa: E402
from model_compression_toolkit.target_platform_capabilities.schema import mct_current_schema as schema  # noqa: E402
from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0.tpc import (  # noqa: E402
    generate_tpc,
)

WIDTHS = (8, 7, 6, 5, 4, 3, 2)


def _attribute(bits: int, enabled: bool) -> Any:
    return schema.AttributeQuantizationConfig(
        weights_quantization_method=QuantizationMethod.SYMMETRIC,
        weights_n_bits=bits,
        weights_per_channel_threshold=True,
        enable_weights_quantization=enabled,
        lut_values_bitwidth=None,
    )


def _operation(weights: dict[str, Any], activations: int) -> Any:
    return schema.OpQuantizationConfig(
        default_weight_attr_config=_attribute(8, False),
        attr_weights_configs_mapping=weights,
        activation_quantization_method=QuantizationMethod.POWER_OF_TWO,
        activation_n_bits=8,
        supported_input_activation_n_bits=8,
        enable_activation_quantization=activations == 8,
        quantization_preserving=False,
        fixed_scale=None,
        fixed_zero_point=None,
        simd_size=1,
        signedness=schema.Signedness.AUTO,
    )


def platform(activations: int) -> Any:
    """Return a target platform with all integer widths for kernels, and nothing else of weights quantized."""
    choices = [
        _operation({KERNEL_ATTR: _attribute(bits, True), BIAS_ATTR: _attribute(32, False)}, activations)
        for bits in WIDTHS
    ]
    made = generate_tpc(_operation({}, activations), choices[0], choices, "integers")
    return made.model_copy(update={"is_simd_padding": False})


def widths(model: Any, job: Job) -> dict[str, LayerFormat]:
    """Read the widths of the exported net; its names are those of the float net with underscores."""
    found = {}
    for name, module in model.named_modules():
        quantizers = getattr(module, "weights_quantizers", None) or {}
        for quantizer in quantizers.values():
            base = name.removesuffix("_bn")
            (layer,) = [known for known in job.shapes if known.replace(".", "_") == base]
            found[layer] = LayerFormat(int(quantizer.num_bits))
    return found


def representative(job: Job) -> Callable[[], Iterator[list[Any]]]:
    def batches() -> Iterator[list[Any]]:
        yield from ([batch] for batch in job.batches())

    return batches


def quantize(job: Job) -> None:
    weights = sum(channels * fan_in for channels, fan_in in job.shapes.values())
    scales = SCALE_BITS * sum(channels for channels, _ in job.shapes.values())
    limit = math.floor((job.budget * weights - scales) / 8)
    search = mct.core.MixedPrecisionQuantizationConfig(num_of_images=int(job.options["score_images"]))
    settings = {
        "target_resource_utilization": mct.core.ResourceUtilization(weights_memory=limit),
        "core_config": mct.core.CoreConfig(mixed_precision_config=search),
        "target_platform_capabilities": platform(job.options["activations"]),
    }
    job.started()
    epochs = int(job.options["epochs"])
    if epochs:
        rounding = mct.gptq.get_pytorch_gptq_config(n_epochs=epochs, gradual_activation_quantization=False)
        model, _ = mct.gptq.pytorch_gradient_post_training_quantization(
            job.model, representative(job), gptq_config=rounding, **settings
        )
    else:
        model, _ = mct.ptq.pytorch_post_training_quantization(job.model, representative(job), **settings)
    job.stopped()
    model.eval()
    job.answer(model, widths(model, job), weights_memory=limit)


if __name__ == "__main__":
    Job.drive(quantize)
