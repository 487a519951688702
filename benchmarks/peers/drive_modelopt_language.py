"""NVIDIA ModelOpt on a language model: `auto_quantize` over integer widths per channel, weights only.

Options: ``method`` (gradient or kl_div). The scores are measured once; ModelOpt then solves again for the constraint
whose delivered bits are closest to the budget. The embedding and a head that is tied to it are rounded beforehand.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from typing import Any

import modelopt.torch.quantization as mtq
from drive_modelopt import MSE, WIDTHS, formats
from driving import LayerFormat, closest_within
from driving_language import LanguageJob


def layer_formats(config: dict[str, Any], job: LanguageJob) -> dict[str, LayerFormat]:
    """Read the width of each layer from a configuration."""
    found = {}
    for entry in config["quant_cfg"]:
        name, _, quantizer = entry["quantizer_name"].rpartition(".")
        if name in job.shapes and quantizer == "weight_quantizer" and entry.get("enable", True):
            found[name] = LayerFormat(int(entry["cfg"]["num_bits"]))
    return found


def effective_bits(job: LanguageJob, bits: int, embedding: Collection[str]) -> float:
    """Return what ModelOpt counts where all layers have one width: codes only, and 16 bits for the embedding."""
    counts = {name: math.prod(shape) for name, shape in job.shapes.items()}
    share = sum(counts[name] for name in embedding) / sum(counts.values())
    return 16 * share + bits * (1 - share)


def quantize(job: LanguageJob) -> None:
    batches = [{"input_ids": batch, "labels": batch} for batch in job.batches()]
    job.started()
    embedding = job.rounded_embedding()
    job.refuse_below(min(WIDTHS), embedding)
    lowest, highest = (effective_bits(job, bits, embedding) for bits in (min(WIDTHS), max(WIDTHS)))
    gradient = job.options["method"] == "gradient"
    fresh = copy.deepcopy(job.model)
    _, state = mtq.auto_quantize(
        job.model,
        constraints={"effective_bits": highest},  # of no consequence for the scores
        quantization_formats=formats("mse"),
        data_loader=batches,
        forward_step=lambda model, batch: model(**batch) if gradient else model(**batch).logits,
        loss_func=lambda output, batch: output.loss,
        disabled_layers=["*embed_tokens*", *(["*lm_head*"] if job.tied else [])],
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        method=job.options["method"],
    )

    def configuration(constraint: float) -> dict[str, Any]:
        return mtq.get_auto_quantize_config(state, {"effective_bits": constraint})

    def delivered(constraint: float) -> float:
        return job.delivered({**layer_formats(configuration(constraint), job), **embedding})

    constraint = closest_within(job.budget, delivered, lowest, highest)
    config = configuration(constraint)
    config["algorithm"] = MSE
    model = mtq.quantize(fresh, config, forward_loop=lambda model: [model(**batch) for batch in batches])
    job.stopped()
    job.answer(model, {**layer_formats(config, job), **embedding}, effective_bits=constraint)


if __name__ == "__main__":
    LanguageJob.drive(quantize)
