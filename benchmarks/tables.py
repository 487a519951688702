"""Write the tables of README.md and docs/results.md from the committed results: no number in them is typed by hand.

python benchmarks/tables.py            # rewrite both between their markers
python benchmarks/tables.py --check    # exit 1 when one differs (the tests run this)
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import artifact_tables
import basin_tables
import result_tables
import training_tables
from common import RESULTS

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / name
        for name in (
            "results.md",
            "activations.md",
            "transforms.md",
            "language-models.md",
            "export.md",
            "training.md",
            "studies.md",
        )
    ),
)
BOUNDS = ("bounds", "bounds_cnn4", "bounds_resnet20")

Row = dict[str, Any]


def load(name: str) -> dict[str, Any]:
    """Read a committed result."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def mnist() -> str:
    """Compare guided and uniform on the 3-layer MLP."""
    rows: list[Row] = load("mnist_mlp")["rows"]
    widths = (8, 6, 4, 3, 2)
    lines = [
        "| MNIST, 3-layer MLP, 5 seeds | " + " | ".join(f"{b} bits" for b in widths) + " |",
        "|-|" + "-|" * len(widths),
    ]
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "float"))
    table = {(row["method"], row["bits"]): row for row in rows}
    for name in names:
        cells = [f"{table[(name, b)]['accuracy']:.2f} ± {table[(name, b)]['spread']:.2f}" for b in widths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    exact = table[("float", 32)]
    lines.append(f"\nFloat: {exact['accuracy']:.2f} ± {exact['spread']:.2f} %.")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "deployed": lambda: result_tables.budgets(load("resnet20_ptq"), load("resnet20_ptq_gptq")),
    "mnist": mnist,
    "uniform": lambda: result_tables.uniform(load("resnet20_rtn")),
    "solvers": lambda: result_tables.solvers(load("resnet20_rtn")),
    "whole_path": lambda: result_tables.whole_path(load("whole_path")),
    "allocation": lambda: result_tables.allocation(load("allocation")),
    "packing": lambda: result_tables.packing(load("packing")),
    "architectures": lambda: result_tables.architectures(load("architectures")),
    "roundings": lambda: result_tables.roundings(load("resnet20_roundings")),
    "uniform_activations": lambda: result_tables.roundings(load("resnet20_uniform_activations")),
    "w4a4": lambda: result_tables.roundings(load("resnet20_w4a4")),
    "blocks": lambda: result_tables.roundings(load("resnet20_blocks")),
    "predictors": lambda: result_tables.predictors(load("resnet20_predictors")),
    "ranks": lambda: result_tables.ranks(load("damage_rank")),
    "peers": lambda: result_tables.peers(load("peers")),
    "peers_short": lambda: result_tables.peers_in_short(load("peers")),
    "diagnoses": lambda: basin_tables.confusion(load("basin_prediction")),
    "diagnosed_nets": lambda: basin_tables.nets(load("basin_prediction")),
    "recovery": lambda: training_tables.recovery(load("recovery")),
    "refinement": lambda: training_tables.refinement(load("refinement")),
    "training_step": lambda: training_tables.few_bit_steps(load("training_step")),
    "recovery_controls": lambda: training_tables.recovery(load("recovery_controls")),
    "few_bit_reach": lambda: training_tables.study_table("few-bit-training", "reach"),
    "few_bit_failures": lambda: training_tables.study_table("few-bit-training", "failures"),
    "few_bit_claims": lambda: training_tables.study_claims("few-bit-training"),
    "who_is_right": lambda: training_tables.study_table("depth", "who-is-right"),
    "depth_claims": lambda: training_tables.study_claims("depth"),
    "bit_allocation_claims": lambda: training_tables.study_claims("bit-allocation"),
    "transformer_claims": lambda: training_tables.study_claims("transformer-quantization"),
    "basin_claims": lambda: training_tables.study_claims("low-loss-basin"),
    "peer_claims": lambda: training_tables.study_claims("peers"),
    "qat_step": lambda: training_tables.steps(load("qat_step")),
    "trained": lambda: result_tables.trained(load("architectures_trained")),
    "transforms_weights": lambda: result_tables.transformed_weights(load("transforms_llama")),
    "transforms_activations": lambda: result_tables.transformed_activations(load("transforms_llama")),
    "transforms_resnet": lambda: result_tables.transformed_resnet(load("transforms_resnet")),
    "geometry": lambda: result_tables.geometry(load("geometry")),
    "activations": lambda: result_tables.activations(load("activation_bits")),
    "bounds": lambda: result_tables.bounds(*map(load, BOUNDS)),
    "stories260k": lambda: artifact_tables.language(load("stories260k")),
    "gpt": lambda: artifact_tables.language(load("gpt")),
    "encoders": lambda: artifact_tables.encoders(load("encoder_parts")),
    "latency": lambda: artifact_tables.latency(load("onnx_latency")),
    "large": lambda: artifact_tables.large(load("large_model_100m"), load("large_model_1b")),
    "larger": lambda: artifact_tables.larger(load("large_model_100m"), "100m"),
}


def filled(text: str) -> str:
    """Return `text` with every marked block replaced by its table."""
    for name, make in TABLES.items():
        block = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if block.search(text):
            text = block.sub(lambda found, make=make: found.group(1) + make() + "\n" + found.group(2), text)
    return text


def main() -> None:
    texts = {page: page.read_text() for page in PAGES}
    wanted = {page: filled(text) for page, text in texts.items()}
    if "--check" in sys.argv:
        sys.exit(texts != wanted)
    for page, text in wanted.items():
        page.write_text(text)


if __name__ == "__main__":
    main()
