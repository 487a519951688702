"""What is wrong with rounding this model by this plan, how is that known, and what helps?

A `Diagnosis` is made before the model is changed. It keeps the measurements beside the verdict, so that another
verdict can be drawn from them, and says what it does not know: it speaks of the samples that it looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from geoquant import storage
from geoquant.basin.codewords import NEAREST, NEIGHBOURS, SECOND_ORDER, Candidate
from geoquant.basin.slices import Line, Plane
from geoquant.basin.verdict import Evidence, Thresholds, Verdict
from geoquant.basin.width import BasinWidth, Width
from geoquant.errors import FileFormatError
from geoquant.plan import align

DIAGNOSIS_VERSION = 1
DIAGNOSIS_FILE = "diagnosis.json"
SHARE = 0.5
"""Layers that are not trained may together take this share of the tolerance, by their rises one at a time."""


@dataclass(frozen=True)
class Constructive:
    """Whether rounding fails although a low-loss codeword is near.

    Attributes:
        crossed: roundings whose codeword lies outside the basin, of nearest and GPTQ.
        found: the way by which a codeword inside was found in the float model's own landscape (norms untouched); empty
            when none was.
        steps: its distance from the float weights in grid steps; 0 when none was found.
    """

    crossed: tuple[str, ...]
    found: str = ""
    steps: float = 0.0

    def __str__(self) -> str:
        if not self.crossed:
            return "no rounding that was tried leaves the basin"
        who = " and ".join(self.crossed)
        verb = "leave" if len(self.crossed) > 1 else "leaves"
        if not self.found:
            return f"{who} {verb} the basin; no low-loss codeword was found near the float weights (a short search)"
        return (
            f"{who} {verb} the basin although a low-loss codeword is near: found by {self.found}, "
            f"{self.steps:.2g} grid steps away"
        )


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on a plan, its evidence, and the remedy.

    Attributes:
        verdict: "ptq", "better-rounding", "qat" or "infeasible".
        reasons: a sentence for each comparison that led to it.
        remedy: what to do.
        layers: layers to be trained, largest damage first; empty where nothing needs training.
        evidence: the numbers that the verdict follows from.
        thresholds: where it would change.
        width: of the basin.
        candidates: codewords that were deployed and judged.
        plan: the plan in words.
        data: fingerprint of the calibration data.
        seed: of every random draw.
        lines: slices of the loss along one direction.
        planes: slices through three points.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    remedy: str
    layers: tuple[str, ...]
    evidence: Evidence
    thresholds: Thresholds
    width: BasinWidth
    candidates: tuple[Candidate, ...]
    plan: str
    data: str
    seed: int
    lines: tuple[Line, ...] = ()
    planes: tuple[Plane, ...] = ()

    @property
    def constructive(self) -> Constructive:
        """Whether rounding fails although a low-loss codeword is near."""
        return constructive_failure(self.candidates, self.evidence.tolerance)

    def save(self, path: Path | str) -> Path:
        """Write the diagnosis as one JSON file, atomically (``diagnosis.json`` inside when `path` is a folder)."""
        target = Path(path)
        target = target if target.suffix == ".json" else target / DIAGNOSIS_FILE
        storage.write_document(target, "diagnosis", DIAGNOSIS_VERSION, self.to_json())
        return target

    def to_json(self) -> storage.Json:
        """Return the diagnosis as plain JSON values; what is infinite is written as text."""
        document: storage.Json = storage.finite(_ADAPTER.dump_python(self, mode="json"))
        return document

    @staticmethod
    def load(path: Path | str) -> Diagnosis:
        """Read a diagnosis from its file or folder; `FileFormatError` when it is truncated or was edited."""
        path = Path(path)
        path = path / DIAGNOSIS_FILE if path.is_dir() else path
        _, content = storage.read_document(path, "diagnosis", DIAGNOSIS_VERSION)
        try:
            return _ADAPTER.validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FileFormatError(f"{path} does not hold a valid diagnosis: {place}: {first['msg']}") from error

    def __str__(self) -> str:
        width, evidence = self.width, self.evidence
        loss = width.loss.replace("_", "-")
        floats = "" if width.loss == "kl" else f" (float: {width.float_loss.value:.4g})"
        lines = [
            f"{self.verdict.upper()}: {self.plan}",
            f"allowed is a rise of {loss} by {evidence.tolerance:g} nats{floats}, judged on "
            f"{evidence.nearest.samples:,} samples, the basin on {width.samples:,}",
            "",
            "why",
            *(f"  {reason}" for reason in self.reasons),
            f"  {self.constructive}",
            "",
            _candidate_table(self.candidates),
            "",
            f"basin (rise at most {evidence.tolerance:g}): radius in multiples of the direction and in grid steps, "
            f"with {100 * width.displacement.radius.confidence:g} % intervals",
            _width_table(width.joint),
        ]
        if width.layers:
            lines += ["", f"layers alone: {_leaving_text(width)}"]
        lines += ["", *([f"to train: {', '.join(self.layers)}"] if self.layers else []), f"what to do: {self.remedy}"]
        return "\n".join(lines)


_ADAPTER = TypeAdapter(Diagnosis)


def constructive_failure(candidates: Sequence[Candidate], tolerance: float) -> Constructive:
    """Compare roundings with the best codeword near the float weights; weights only, nothing else moved."""
    near = {each.name: each for each in candidates if each.weights_only}
    crossed = tuple(name for name in (NEAREST, SECOND_ORDER) if name in near and near[name].rise.value > tolerance)
    inside = [each for each in near.values() if each.rise.value <= tolerance]
    if not crossed or not inside:
        return Constructive(crossed)
    best = min(inside, key=lambda each: each.rise.value)
    name = "a straight-through walk between neighbouring levels" if best.name == NEIGHBOURS else best.name
    return Constructive(crossed, name, best.steps)


def layers_to_train(layers: Sequence[Width], tolerance: float) -> tuple[str, ...]:
    """Name the fewest layers such that the others' rises, one at a time, sum to at most half the tolerance.

    One at a time is not together: where layers act jointly, more may be needed.
    """
    ranked = sorted(layers, key=lambda width: -width.rise.value)
    left = sum(max(width.rise.value, 0.0) for width in ranked)
    chosen = []
    for width in ranked:
        if left <= SHARE * tolerance:
            break
        chosen.append(width.layer)
        left = sum(max(each.rise.value, 0.0) for each in ranked[len(chosen) :])
    return tuple(chosen)


def remedy_for(verdict: Verdict, layers: Sequence[str], constructive: Constructive) -> str:
    """Say what to do about it."""
    if verdict == "ptq":
        return "round it: gq.quantize_(model, plan) is enough; with calibration batches it loses still less"
    if verdict == "better-rounding":
        return "gq.quantize_(model, plan, calibration): descent with corrected norms stays within the tolerance"
    if verdict == "infeasible":
        worst = f" first of all to {', '.join(layers[:3])}," if layers else ""
        return f"give more bits,{worst} or allow a larger drop; a training of a few epochs is not expected to suffice"
    some = f" of {len(layers)} layers" if layers else ""
    learn = "; gq.quantize_(..., refine='network') may do without labels" if constructive.found else ""
    return f"train with quantized weights: gq.recover_(model, plan, batches){some}{learn}"


def _candidate_table(candidates: Sequence[Candidate]) -> str:
    rows = [("codeword", "rise of the loss", "grid steps away")]
    for each in candidates:
        rows.append((each.name, f"{each.rise.value:.4g} ± {each.rise.stderr:.2g}", f"{each.steps:.3f}"))
    return align(rows, (False, True, True))


def _width_table(widths: Sequence[Width]) -> str:
    rows = [("direction", "radius", "grid steps", "rise at 1", "second order", "")]
    for each in widths:
        second = "–" if each.second_order is None else f"{each.second_order:.3g}"
        note = ", ".join(part for part in (each.landform or "", "wall" if each.wall else "") if part)
        rise = f"{each.rise.value:.3g} ± {each.rise.stderr:.1g}"
        rows.append((each.direction, str(each.radius), str(each.in_steps), rise, second, note))
    return align(rows, (False, True, True, True, True, False))


def _leaving_text(width: BasinWidth) -> str:
    leaving = width.leaving
    names = ", ".join(leaving[:6]) + (f" and {len(leaving) - 6} more" if len(leaving) > 6 else "")
    return f"{len(leaving)} of {len(width.layers)} leave the basin{': ' + names if leaving else ''}"
