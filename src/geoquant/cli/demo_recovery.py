"""The second part of the demo: rounding that fails, a diagnosis that foresees it, and training that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from geoquant.basin import Diagnosis, SliceSettings, diagnose
from geoquant.data import digits
from geoquant.evaluation import Evaluation, evaluate, logits
from geoquant.plan import align, uniform_plan
from geoquant.quantize import quantize
from geoquant.recovery import Trace, recover_

GRID = "binary"
EPOCHS = 10


@dataclass(frozen=True)
class Mended:
    """What was foreseen, what happened, and how training went."""

    diagnosis: Diagnosis
    results: dict[str, Evaluation]
    trace: Trace

    def __str__(self) -> str:
        rows = [(f"{GRID} weights, all layers", "accuracy", "KL to float")]
        rows += [(how, f"{100 * accuracy:.1f} %", f"{kl:.4f}") for how, (accuracy, kl) in self._figures().items()]
        foreseen = [f"diagnosed before rounding: {self.diagnosis.verdict}", *self.diagnosis.reasons]
        return "\n  ".join(foreseen) + "\n" + align(rows, (False, True, True))

    def to_json(self) -> dict[str, Any]:
        """Return the figures behind the text."""
        results = {how: {"accuracy": accuracy, "kl": kl} for how, (accuracy, kl) in self._figures().items()}
        return {"verdict": self.diagnosis.verdict, "results": results}

    def _figures(self) -> dict[str, tuple[float, float]]:
        figures = {}
        for how, result in self.results.items():
            assert result.kl is not None  # a reference was given
            figures[how] = (result.accuracy.value, result.kl.value)
        return figures


def diagnose_and_recover(model: nn.Module, seed: int) -> Mended:
    """Say what rounding to one bit will do to `model`, round, and train what was rounded; `model` stays as it is."""
    images, test = digits("train"), digits("test").batches(256, normalize="dataset")
    calibration = images.batches(128, limit=512, seed=seed, normalize="dataset")
    plan = uniform_plan(model, GRID)
    both = images.batches(128, limit=1024, seed=seed, normalize="dataset")  # as many make codewords, as many judge them
    diagnosis = diagnose(model, plan, both, slices=SliceSettings(plane=9), seed=seed)
    wanted, results = logits(model, test), {}
    nearest = quantize(model, plan, rounding="nearest", norms="none")
    results["rounded to nearest"] = evaluate(nearest, test, reference=wanted)
    trained = quantize(model, plan, calibration, seed=seed)
    results["descent, norms corrected"] = evaluate(trained, test, reference=wanted)
    training = images.batches(32, seed=seed, normalize="dataset")
    trace = recover_(trained, plan, training, teacher=model, epochs=EPOCHS, seed=seed).trace
    results[f"trained, {EPOCHS} epochs"] = evaluate(trained, test, reference=wanted)
    return Mended(diagnosis, results, trace)
