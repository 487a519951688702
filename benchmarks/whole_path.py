"""The whole path on ResNet-20 with 512 calibration images: seconds and peak memory, each run in its own process.

python benchmarks/whole_path.py --weights cifar10_resnet20.safetensors
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import parser, write_results

CHILD = """
import json, resource, sys, time, torch
torch.set_num_threads({threads})
from geoquant.cli.inputs import Normalize, read_batches, read_model
import geoquant as gq
weights, folder = sys.argv[1:]
model = read_model("geoquant.models.zoo:resnet20_cifar10", __import__("pathlib").Path(weights))
batches = read_batches("cifar10", "train", Normalize.imagenet, weights, 128, 512)
start = time.perf_counter(); marks = {{}}
def mark(name):
    global start
    marks[name] = time.perf_counter() - start; start = time.perf_counter()
profile = gq.profile(model, batches); mark("profile")
plan = gq.allocate(profile, gq.Budget(average_bits=3)); mark("allocate")
gq.quantize_(model, plan); mark("quantize")
path = gq.save(model, plan, folder); mark("save")
gq.load(folder, read_model("geoquant.models.zoo:resnet20_cifar10", None)); mark("load")
assert path.stat().st_size == plan.bytes
marks["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(marks))
"""


def main() -> None:
    made = parser(__doc__ or "", "whole_path")
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--repeats", type=int, default=3)
    arguments = made.parse_args()
    runs = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            code = CHILD.format(threads=arguments.threads)
            child = [sys.executable, "-c", code, str(arguments.weights), folder]
            runs.append(json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout))
    medians = {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}
    medians["total_seconds"] = round(sum(value for key, value in medians.items() if key != "peak_mb"), 2)
    print(medians)
    write_results(arguments, {"medians": medians, "runs": runs})


if __name__ == "__main__":
    main()
