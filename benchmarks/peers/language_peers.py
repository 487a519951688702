"""Other tools on the cells of a language-model table: each in its environment, same checkpoint, tokens and bytes.

Called by ``stories260k.py --peers FOLDER``. A tool that cannot keep a budget, or that fails, gives its reason instead
of a figure. What it reports as delivered must agree with geoquant's own plan of the same widths.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from comparison import delivered_bits
from driving import LayerFormat
from environments import python_of
from run import last_words
from safetensors.torch import save_file

from geoquant.models import take_inventory

HERE = Path(__file__).resolve().parent
TIMEOUT = 1800
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ModelOpt gradient": ("modelopt", "drive_modelopt_language.py", {"method": "gradient"}),
    "ModelOpt kl_div": ("modelopt", "drive_modelopt_language.py", {"method": "kl_div"}),
    "AutoRound AutoScheme": ("auto_round", "drive_auto_round_language.py", {"iters": 200}),
    "NNCF": ("nncf", "drive_nncf_language.py", {}),
}


def measure_peer(
    name: str,
    folder: Path,
    checkpoint: Path,
    batches: list[Any],
    test: list[Any],
    budget: float,
    seed: int,
    threads: int,
) -> dict[str, Any]:
    """Run one driver; return its figures, or its reason."""
    environment, driver, options = PEERS[name]
    python = python_of(folder, environment)
    if not python.exists():
        return {"reason": f"there is no environment '{environment}'; run environments.py"}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = Path(scratch)
        save_file(
            {"tokens": torch.cat([batch["input_ids"] for batch in batches])}, str(place / "calibration.safetensors")
        )
        save_file(padded(test), str(place / "test.safetensors"))
        job = {
            "checkpoint": str(checkpoint.resolve()),
            "calibration": str(place / "calibration.safetensors"),
            "test": str(place / "test.safetensors"),
            "budget": budget,
            "seed": seed,
            "threads": threads,
            "options": options,
        }
        (place / "job.json").write_text(json.dumps(job))
        command = [str(python), str(HERE / driver), str(place / "job.json")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return {"reason": f"not done after {TIMEOUT} seconds"}
        if done.returncode:
            return {"reason": last_words(done.stderr)}
        return json.loads((place / "answer.json").read_text())  # type: ignore[no-any-return]


def judged(model: torch.nn.Module, answer: dict[str, Any], budget: float) -> dict[str, Any]:
    """Return the cell of a driver's answer."""
    if "reason" in answer:
        return answer
    inventory = take_inventory(model)
    bits = delivered_bits(inventory, {name: LayerFormat(**each) for name, each in answer["layers"].items()})
    if abs(bits - answer["average_bits"]) > 1e-6:
        return {"reason": f"the driver counts {answer['average_bits']:.6f} bits, the plan {bits:.6f}"}
    if bits > budget + 1e-9:
        return {"reason": f"delivers {bits:.4f} average bits for a budget of {budget:g}"}
    loss = sum(answer["nats"]) / sum(answer["counts"])
    each = [nats / count for nats, count in zip(answer["nats"], answer["counts"], strict=True) if count]
    stderr = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else 0.0
    found = {"loss": loss, "stderr": stderr, "tokens": sum(answer["counts"]), "average_bits": bits}
    widths = {name: layer["bits"] for name, layer in answer["layers"].items()}
    return {**found, "bytes": round(bits * inventory.weights / 8), "widths": widths, "tool_seconds": answer["seconds"]}


def padded(batches: list[Any]) -> dict[str, torch.Tensor]:
    """Join windows; shorter ones are filled behind their end, where a causal model's predictions do not count."""
    width = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"input_ids": 0, "labels": -100}
    joined = {
        name: torch.cat([F.pad(batch[name], (0, width - batch[name].shape[1]), value=value) for batch in batches])
        for name, value in fill.items()
    }
    return {"tokens": joined["input_ids"].contiguous(), "labels": joined["labels"].contiguous()}
