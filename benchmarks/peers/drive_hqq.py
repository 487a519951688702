"""HQQ: half-quadratic quantization of every weight matrix, one width for the whole net; it has no search.

Options: ``width`` (2, 3, 4 or 8). Its layer is for `nn.Linear` only, so its quantizer is called on each weight laid
out as (channels, fan_in), per channel, with a scale and a zero point of 16 bits each. It looks at weights only.
"""

from __future__ import annotations

import torch
from driving import Job, LayerFormat
from hqq.core.quantize import Quantizer


def run(job: Job) -> None:
    width = int(job.options["width"])
    job.started()
    for module in job.layers.values():
        matrix = module.weight.detach().flatten(1)
        codes, meta = Quantizer.quantize(
            matrix, nbits=width, group_size=None, axis=1, round_zero=False, bitpack=False, device="cpu"
        )
        weight = (codes.float() - meta["zero"].half().float()) * meta["scale"].half().float()
        module.weight = torch.nn.Parameter(weight.reshape(module.weight.shape))
    job.stopped()
    job.answer(job.model, dict.fromkeys(job.shapes, LayerFormat(width, offsets=1)))


if __name__ == "__main__":
    Job.drive(run)
