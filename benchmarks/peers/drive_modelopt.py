"""NVIDIA ModelOpt: `auto_quantize` over integer widths per channel, weights only.

Options: ``method`` (gradient or kl_div) and ``algorithm`` (max or mse: how scales are found; its GPTQ and AWQ are
for linear layers only, and the search refuses them). Labels for the gradient are the float net's own answers. The
scores are measured once; ModelOpt then solves again for the constraint whose delivered bits are closest to the budget.
"""

from __future__ import annotations

import copy
from typing import Any

import modelopt.torch.quantization as mtq
import torch.nn.functional as F
from driving import Job, LayerFormat, average_bits, closest_within

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
UNQUANTIZED = 16  # what ModelOpt counts for a layer that it leaves alone
MSE = {"method": "mse", "start_multiplier": 0.3, "stop_multiplier": 1.2, "step_size": 0.025}


def formats(algorithm: str) -> list[dict[str, Any]]:
    """Return one quantization format a width, in ModelOpt's words."""
    return [
        {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            ],
            "algorithm": MSE if algorithm == "mse" else algorithm,
        }
        for bits in WIDTHS
    ]


def layer_formats(config: dict[str, Any], job: Job) -> dict[str, LayerFormat]:
    """Read the width of each layer from a configuration; layers without one stay in float."""
    found = dict.fromkeys(job.shapes, LayerFormat(UNQUANTIZED))
    for entry in config["quant_cfg"]:
        name, _, quantizer = entry["quantizer_name"].rpartition(".")
        if name in found and quantizer == "weight_quantizer" and entry.get("enable", True):
            found[name] = LayerFormat(int(entry["cfg"]["num_bits"]))
    return found


def quantize(job: Job) -> None:
    batches = job.batches()
    fresh = copy.deepcopy(job.model)
    job.started()
    _, state = mtq.auto_quantize(
        job.model,
        constraints={"effective_bits": job.budget},
        quantization_formats=formats(job.options["algorithm"]),
        data_loader=batches,
        forward_step=lambda model, batch: model(batch),
        loss_func=lambda output, batch: F.cross_entropy(output, output.detach().argmax(1)),
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        method=job.options["method"],
    )

    def configuration(constraint: float) -> dict[str, Any]:
        return mtq.get_auto_quantize_config(state, {"effective_bits": constraint})

    def delivered(constraint: float) -> float:
        return average_bits(job.shapes, layer_formats(configuration(constraint), job))

    constraint = closest_within(job.budget, delivered, min(WIDTHS), job.budget)
    config = configuration(constraint)
    config["algorithm"] = MSE if job.options["algorithm"] == "mse" else job.options["algorithm"]
    model = mtq.quantize(fresh, config, forward_loop=lambda model: [model(batch) for batch in batches])
    job.stopped()
    job.answer(model, layer_formats(config, job), effective_bits=constraint)


if __name__ == "__main__":
    Job.drive(quantize)
