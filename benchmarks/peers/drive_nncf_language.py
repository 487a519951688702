"""NNCF on a language model: `compress_weights` to 4 or 8 bits per channel, the share of each chosen for the budget.

Options: none. Its mixed precision has two widths, symmetric int4 and int8; which layers get 8 it decides by its own
default metric. The embedding is rounded beforehand. The share is the one whose delivered bits are closest to the
budget.
"""

from __future__ import annotations

import copy
from typing import Any

import nncf
from driving import LayerFormat, closest_within
from driving_language import LanguageJob
from nncf.torch.quantization.layers import BaseWeightsDecompressor


def compressed(job: LanguageJob, share: float) -> Any:
    """Return a copy of the model with at least this share of weights at 4 bits, as NNCF counts."""
    batches = [{"input_ids": batch, "use_cache": False} for batch in job.batches()]
    options = {"all_layers": True, "backup_mode": nncf.BackupMode.INT8_SYM, "subset_size": len(batches)}
    ignored = nncf.IgnoredScope(patterns=[".*embed_tokens.*", *([".*lm_head.*"] if job.tied else [])], validate=False)
    return nncf.compress_weights(
        copy.deepcopy(job.model),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        ratio=share,
        group_size=-1,
        ignored_scope=ignored,
        dataset=nncf.Dataset(batches),
        **options,
    )


def layer_formats(model: Any, job: LanguageJob) -> dict[str, LayerFormat]:
    """Read the width of each layer from the modules that NNCF put behind its weights."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseWeightsDecompressor):
            plain = path.replace(":", ".")
            (name,) = [name for name in job.shapes if f".{name}.weight" in plain]
            found[name] = LayerFormat(4 if type(module).__name__.startswith("INT4") else 8)
    return found


def quantize(job: LanguageJob) -> None:
    job.started()
    embedding = job.rounded_embedding()
    job.refuse_below(4, embedding)

    def delivered(share_of_8: float) -> float:
        return job.delivered({**layer_formats(compressed(job, 1 - share_of_8), job), **embedding})

    share = 1 - closest_within(job.budget, delivered, 0.0, 1.0, steps=8)
    model = compressed(job, share)
    job.stopped()
    job.answer(model, {**layer_formats(model, job), **embedding}, ratio=share)


if __name__ == "__main__":
    LanguageJob.drive(quantize)
