"""How long does a training step with quantized weights take, beside a float step and beside other libraries' steps?

    python benchmarks/peers/environments.py --folder peers brevitas
    python benchmarks/qat_step.py --peers peers

ResNet-20, batch 128, channels last, AdamW; every library rounds the weights of all layers to 4 bits with one scale per
channel. Steps are timed in turn, round after round, and what is reported is the median of each round's ratio to the
float step of the same round. Brevitas runs in an environment of its own, with a float step beside it there. geoquant's
step includes its tracking of oscillations. No accuracy is measured here.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import geoquant as gq
from common import parser, write_results
from geoquant.models.zoo import resnet20_cifar10, resnet_cifar
from geoquant.recovery import Settings, prepare_
from peers.environments import python_of
from peers.step_timing import Step, alternate, training_step


def with_geoquant(bits: int, batch: int, method: str, activations: str | None = None) -> Step:
    """Return a step on a prepared model, as `recover_` takes it."""
    model = resnet20_cifar10()
    plan = gq.uniform_plan(model, f"int{bits}:maxabs", activations=activations)
    gq.quantize_(model, plan, None if activations is None else [torch.randn(32, 3, 32, 32)])
    latents = prepare_(model, method=method)
    latents.watch_()
    settings, plain = Settings(steps=1000), training_step(model, batch)

    def step() -> None:
        latents.begin_step_(0.5, settings)
        plain()

    return step


class TorchaoWeight(nn.Module):
    """torchao's fake quantization of a weight, per channel, scales found at each step."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

        self.fake = IntxFakeQuantizer(IntxFakeQuantizeConfig(getattr(torch, f"int{bits}"), "per_channel"))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight rounded; torchao takes matrices."""
        rounded: Tensor = self.fake(weight.flatten(1))
        return rounded.view(weight.shape)


def with_torchao(bits: int, batch: int) -> Step:
    """Return a step with torchao's fake quantization on the weights of all layers."""
    model = resnet20_cifar10()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(layer, "weight", TorchaoWeight(bits))
    return training_step(model, batch)


def with_brevitas(folder: Path, threads: int, batch: int, rounds: int, bits: int) -> dict[str, list[float]]:
    """Time Brevitas, and a float step beside it, in Brevitas's environment."""
    driver = Path(__file__).parent / "peers" / "drive_brevitas_step.py"
    with tempfile.TemporaryDirectory() as place:
        answer = Path(place) / "seconds.json"
        words = ["--net", str(resnet_cifar.__file__), "--answer", str(answer), "--threads", str(threads)]
        words += ["--batch", str(batch), "--rounds", str(rounds), "--bits", str(bits)]
        subprocess.run([str(python_of(folder, "brevitas")), str(driver), *words], check=True)
        seconds: dict[str, list[float]] = json.loads(answer.read_text())
        return seconds


def ratios(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return, for each step, the median milliseconds and the median of its ratio to the float step of its round."""
    return [
        {
            "step": name,
            "milliseconds": round(1e3 * statistics.median(own), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(own, seconds["float"], strict=True)), 3),
        }
        for name, own in seconds.items()
    ]


def main() -> None:
    made = parser(__doc__ or "", "qat_step")
    made.add_argument("--peers", type=Path, default=None, help="folder of peers' environments; without it no Brevitas")
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--rounds", type=int, default=15)
    made.add_argument("--bits", type=int, default=4)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    bits, batch = arguments.bits, arguments.batch
    steps = {
        "float": training_step(resnet20_cifar10(), batch),
        "geoquant, fixed steps": with_geoquant(bits, batch, "ste"),
        "geoquant, learned steps": with_geoquant(bits, batch, "lsq"),
        "torchao": with_torchao(bits, batch),
        "geoquant, learned steps, inputs too": with_geoquant(bits, batch, "lsq", f"int{bits}:affine"),
    }
    rows = ratios(alternate(steps, arguments.rounds))
    if arguments.peers is not None:
        beside = ratios(with_brevitas(arguments.peers, arguments.threads, batch, arguments.rounds, bits))
        rows += [{**row, "step": row["step"] + " (Brevitas's environment)"} for row in beside if row["step"] == "float"]
        rows += [row for row in beside if row["step"] != "float"]
    for row in rows:
        print(f"{row['step']:40} {row['milliseconds']:8.1f} ms  {row['ratio']:.3f} × float")
    write_results(arguments, {"rows": rows})


if __name__ == "__main__":
    main()
