r"""Loss of stories260K at a few inclusive average bits: mixed precision beside uniform grids, same bytes, same text.

    python benchmarks/stories260k.py
    python benchmarks/stories260k.py --checkpoint gpt --train-text tinyshakespeare --test-text tinyshakespeare \
        --output benchmarks/results/gpt.json

Budgets are upper limits that everybody keeps: stored codes, scales, zero points and padding of every layer, the (tied)
embedding included; they leave room for one scale a matrix, so that a uniform grid of each width fits. Calibration draws
windows from the first four fifths of the training text, three draws; choices (which uniform grid) look at the last
fifth; the figures are of another text. Finished cells are kept in the output's neighbour ``*-cells.json``: a rerun
measures only what is missing. Other tools take part with ``--peers FOLDER``, the folder of their
environments (``peers/environments.py``).
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from language_peers import PEERS, judged, measure_peer

from common import parser, write_results
from language_tables import CONTESTANTS, Bench, Cells, Settings, key_of, measure_cells, rows, table

# A width and one fp16 scale a matrix (36 of them): what the coarsest uniform grid of that width takes.
BUDGETS = [8.005, 4.005, 3.005, 2.5, 2.005]


def measure_peers(bench: Bench, cells: Cells, arguments: Any) -> list[dict[str, Any]]:
    """Measure the other tools at every budget on every calibration set; a reason where there is no figure."""
    found = []
    for seed, budget, name in itertools.product(range(arguments.seeds), arguments.budgets, arguments.tools):

        def measure(name: str = name, budget: float = budget, seed: int = seed) -> dict[str, Any]:
            place, batches = arguments.peers.resolve(), bench.calibration(seed)
            settings = (arguments.checkpoint, batches, bench.test, budget, seed, arguments.threads)
            return judged(bench.model, measure_peer(name, place, *settings), budget)

        key = key_of(bench, name, budget, seed)
        cell = cells.kept(key) if arguments.finished else cells.get(key, measure)
        if cell is not None:
            found.append(cell)
            print(f"{budget:g} bits, {name}, seed {seed}: {cell.get('loss', cell.get('reason'))}", flush=True)
    return found


def main() -> None:
    made = parser(__doc__ or "", "stories260k")
    known = os.environ.get("GEOQUANT_WEIGHTS_DIR", ".")
    made.add_argument("--checkpoint", type=Path, default=Path(known) / "stories260K", help="Hugging Face folder")
    made.add_argument("--train-text", default="tinystories/v2_train_head.txt", help="for calibration and choices")
    made.add_argument("--test-text", default="tinystories/v1_valid_head.txt", help="for the figures")
    made.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="inclusive average bits")
    made.add_argument("--seeds", type=int, default=3, help="calibration sets")
    made.add_argument("--peers", type=Path, default=None, help="folder of the other tools' environments")
    made.add_argument("--tools", nargs="+", choices=list(PEERS), default=list(PEERS), help="of these, with --peers")
    made.add_argument("--finished", action="store_true", help="write what earlier runs measured, and measure nothing")
    made.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    defaults = Settings(Path(), "", "")
    for name in ("window", "calibration", "profile", "choices", "evaluated", "steps"):
        made.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    made.add_argument("--rate", type=float, default=defaults.rate, help="learning rate of codes")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = {name: getattr(arguments, name) for name in vars(defaults) if hasattr(arguments, name)}
    bench = Bench(Settings(**{**chosen, "train": arguments.train_text, "test": arguments.test_text}))
    cells = Cells(arguments.output.with_name(f"{arguments.output.stem}-cells.json"))
    float_figures = bench.figures(bench.model)
    wanted = (arguments.only, arguments.budgets, arguments.seeds, arguments.finished)
    found = measure_cells(bench, cells, *wanted)
    if arguments.peers is not None:
        found += measure_peers(bench, cells, arguments)
    gathered = rows([cell for cell in found if "loss" in cell])
    print(table(gathered, float_figures["loss"]))
    write_results(arguments, {"float": float_figures, "rows": gathered, "cells": found})


if __name__ == "__main__":
    main()
