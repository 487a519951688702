"""A random Llama of a billion parameters, profiled and quantized block by block: peak memory, time, time per layer.

    python benchmarks/large_model.py --folder large
    python benchmarks/large_model.py --folder large --size 100m --output large-100m.json

Random weights say nothing about accuracy and everything about memory and speed. The model is written to the folder once
(bfloat16, in shards). Each job runs in a process of its own; its peak is the kernel's count of resident memory (mapped
pages of the files included). Times are those of the processor, all threads together, so that other work on the machine
does not count; the clock's stand beside them. Jobs that are done are kept beside the output; a job that was stopped
goes on at the block where it was.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import geoquant as gq
from common import parser, write_results
from geoquant.streaming import profile_folder, quantize_folder
from language_tables import Cells

SIZES: dict[str, dict[str, int]] = {
    "10m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
    "100m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
}
KEY_VALUE_HEADS = {"10m": 2, "100m": 4, "1b": 4}
VOCABULARY = 32000
GRIDS = ("int2:mse-signed", "int3:mse-signed", "int4:mse-signed", "int8:mse-signed")
JOBS = ("profile", "nearest", "gptq")


def write_model(folder: Path, size: str) -> None:
    """Write random weights, if they are not there."""
    if (folder / "config.json").exists():
        return
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=KEY_VALUE_HEADS[size], tie_word_embeddings=False, **SIZES[size]
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")


def run_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do one job in this process."""
    folder = arguments.folder / arguments.size
    start, began = time.perf_counter(), time.process_time()
    more: dict[str, Any] = {}
    if arguments.job == "profile":
        found = profile_folder(folder, grids=GRIDS)
        found.save(arguments.folder / f"{arguments.size}-profile")
        more["weights"] = found.inventory.weights
    else:
        plan = gq.allocate(gq.Profile.load(arguments.folder / f"{arguments.size}-profile"), gq.Budget(average_bits=4))
        tokens = torch.randint(0, VOCABULARY, (arguments.windows, arguments.window))
        batches = [{"input_ids": row[None]} for row in tokens]
        start, began = time.perf_counter(), time.process_time()
        output = arguments.folder / f"{arguments.size}-{arguments.job}"
        done = quantize_folder(folder, plan, output, batches, rounding=arguments.job)
        more = {"seconds_per_block": sorted(done.seconds), "bytes": done.path.stat().st_size, "plan_bytes": plan.bytes}
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = {"clock_seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - began}
    return {"peak_bytes": used.ru_maxrss * 1024, **{name: round(each, 1) for name, each in seconds.items()}, **more}


def in_a_process(arguments: argparse.Namespace, job: str) -> dict[str, Any]:
    """Do one job in a process of its own."""
    passed = {name: getattr(arguments, name) for name in ("folder", "size", "windows", "window", "threads")}
    options = [text for name, value in passed.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, __file__, "--job", job, *options], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    made = parser(__doc__ or "", "large_model")
    made.add_argument("--folder", type=Path, required=True, help="for the model and the artifacts; some GB")
    made.add_argument("--size", choices=list(SIZES), default="1b")
    made.add_argument("--windows", type=int, default=16, help="calibration windows")
    made.add_argument("--window", type=int, default=512, help="tokens of each")
    made.add_argument("--jobs", choices=JOBS, nargs="+", default=list(JOBS), help="profile comes first")
    made.add_argument("--job", choices=JOBS, default=None, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.job is not None:
        print(json.dumps(run_job(arguments)))
        return
    command = "import large_model, pathlib, sys; large_model.write_model(pathlib.Path(sys.argv[1]), sys.argv[2])"
    target = [str(arguments.folder / arguments.size), arguments.size]
    subprocess.run([sys.executable, "-c", command, *target], check=True, cwd=Path(__file__).parent)
    cells = Cells(arguments.output.with_name(f"{arguments.output.stem}-cells.json"))
    found = {}
    for job in arguments.jobs:
        key = {"job": job, "size": arguments.size, "windows": arguments.windows, "window": arguments.window}
        found[job] = cells.get(key, lambda job=job: in_a_process(arguments, job))
        cell = found[job]
        print(
            f"{job}: {cell['peak_bytes'] / 2**30:.2f} GiB at most, {cell['processor_seconds']:.0f} s of the processor",
            flush=True,
        )
    weights, layers = found["profile"]["weights"], SIZES[arguments.size]["num_hidden_layers"]
    summary = {
        job: {
            "peak_gib": round(cell["peak_bytes"] / 2**30, 3),
            "seconds": cell["processor_seconds"],
            "seconds_per_layer": round(cell["processor_seconds"] / layers, 2),
            "seconds_per_billion_weights": round(1e9 * cell["processor_seconds"] / weights, 1),
        }
        for job, cell in found.items()
    }
    write_results(arguments, {"weights": weights, "layers": layers, "summary": summary, "jobs": found})


if __name__ == "__main__":
    main()
