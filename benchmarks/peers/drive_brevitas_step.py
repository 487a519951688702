"""How long does a training step of ResNet-20 take with Brevitas's fake quantization? Runs in Brevitas's environment.

    python benchmarks/peers/drive_brevitas_step.py --net resnet_cifar.py --answer seconds.json --threads 2

The float step is measured in turn with it, so that the ratio does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import brevitas.nn as qnn
import torch
from brevitas.quant import Int8WeightPerChannelFloat
from driving import build
from step_timing import alternate, training_step
from torch import nn


def with_brevitas(model: nn.Module, bits: int) -> nn.Module:
    """Replace every convolution and linear layer by Brevitas's, weights quantized, in place."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            options = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": bits}
            if isinstance(layer, nn.Conv2d):
                made: nn.Module = qnn.QuantConv2d(
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel_size,
                    stride=layer.stride,
                    padding=layer.padding,
                    bias=layer.bias is not None,
                    **options,
                )
            elif isinstance(layer, nn.Linear):
                made = qnn.QuantLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, **options)
            else:
                continue
            setattr(parent, name, made)
    return model


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--net", type=Path, required=True, help="file that defines resnet20_cifar10")
    made.add_argument("--answer", type=Path, required=True)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--rounds", type=int, default=15)
    made.add_argument("--bits", type=int, default=4)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    plain = build(arguments.net, "resnet20_cifar10")
    replaced = with_brevitas(copy.deepcopy(plain), arguments.bits)
    steps = {
        "float": training_step(plain, arguments.batch),
        "brevitas": training_step(replaced, arguments.batch),
    }
    arguments.answer.write_text(json.dumps(alternate(steps, arguments.rounds)))


if __name__ == "__main__":
    main()
