"""AutoRound on a language model: AutoScheme chooses widths by DeltaLoss, SignRound rounds.

Options: ``iters`` of SignRound. Grids are symmetric integers per channel; the embedding is rounded beforehand. The
average that AutoScheme is asked for is what the budget leaves for the layers that it quantizes.
"""

from __future__ import annotations

import json
import math
from typing import Any

from auto_round import AutoRound, AutoScheme
from auto_round.schemes import QuantizationScheme
from driving import LayerFormat, stored_bits
from driving_language import LanguageJob
from transformers import AutoTokenizer

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def allowance(job: LanguageJob, embedding: dict[str, LayerFormat]) -> float:
    """Return the average bits of codes and scales that the budget leaves for the linear layers."""
    linear = {name: shape for name, shape in job.shapes.items() if name not in embedding}
    weights = sum(map(math.prod, job.shapes.values()))
    spent = sum(stored_bits(job.shapes[name], layer) for name, layer in embedding.items())
    return (job.budget * weights - spent) / sum(map(math.prod, linear.values()))


def quantize(job: LanguageJob) -> None:
    embedding = job.rounded_embedding()
    job.refuse_below(min(WIDTHS), embedding)
    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint)
    text = job.folder / "calibration.json"
    text.write_text(json.dumps([{"text": tokenizer.decode(row)} for row in job.calibration.tolist()]))
    options = [QuantizationScheme(bits=bits, group_size=-1, sym=True, data_type="int", act_bits=16) for bits in WIDTHS]
    shared = {"seqlen": job.calibration.shape[1], "nsamples": len(job.calibration), "batch_size": 8}
    scheme = AutoScheme(
        avg_bits=allowance(job, embedding), options=options, dataset=str(text), low_gpu_mem_usage=False, **shared
    )
    job.started()
    rounder = AutoRound(
        job.model,
        tokenizer=tokenizer,
        scheme=scheme,
        dataset=str(text),
        iters=job.options["iters"],
        device_map="cpu",
        enable_torch_compile=False,  # compiled blocks of a small model fail in backward
        seed=job.seed,
        **shared,
    )
    model, found = rounder.quantize()
    job.stopped()
    job.answer(model, {**layer_formats(found, job), **embedding})


def layer_formats(found: dict[str, dict[str, Any]], job: LanguageJob) -> dict[str, LayerFormat]:
    """Read the width of each layer from AutoRound's configuration."""
    widths = {name: int(each["bits"]) for name, each in found.items() if name in job.shapes}
    return {name: LayerFormat(bits) for name, bits in widths.items() if bits < 16}


if __name__ == "__main__":
    LanguageJob.drive(quantize)
