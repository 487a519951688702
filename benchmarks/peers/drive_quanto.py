"""optimum-quanto: `quantize` and `freeze`, one width for the whole net; it has no search.

Options: ``width`` (2, 4 or 8) and ``optimizer`` (max or hqq: how ranges are found). It looks at weights only, so
calibration images play no part. Below 8 bits it is affine, with a shift beside each scale, in groups where the fan-in
divides by 128, 96, 64 or 32.
"""

from __future__ import annotations

from driving import Job, LayerFormat
from optimum.quanto import HqqOptimizer, MaxOptimizer, freeze, qint2, qint4, qint8, quantize

WIDTHS = {2: qint2, 4: qint4, 8: qint8}
OPTIMIZERS = {"max": MaxOptimizer, "hqq": HqqOptimizer}


def run(job: Job) -> None:
    width = int(job.options["width"])
    job.started()
    optimizer = OPTIMIZERS[job.options["optimizer"]]() if width < 8 else None  # 8 bits are symmetric
    quantize(job.model, weights=WIDTHS[width], optimizer=optimizer)
    freeze(job.model)
    job.stopped()
    layers = {}
    for name in job.shapes:
        group = job.model.get_submodule(name).weight_group_size
        layers[name] = LayerFormat(width, group, offsets=int(width < 8))
    job.answer(job.model, layers)


if __name__ == "__main__":
    Job.drive(run)
