"""AutoRound: SignRound over the blocks of a language model. It is asked all the same: its own words are the reason.

Options: ``width``.
"""

from __future__ import annotations

from auto_round import AutoRound
from driving import Job, LayerFormat


def run(job: Job) -> None:
    width = int(job.options["width"])
    job.started()
    rounder = AutoRound(job.model, tokenizer=None, bits=width, group_size=-1, sym=True, dataset=job.batches())
    model, _ = rounder.quantize()
    job.stopped()
    job.answer(model, dict.fromkeys(job.shapes, LayerFormat(width)))


if __name__ == "__main__":
    Job.drive(run)
