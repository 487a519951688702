"""Does a diagnosis made beforehand say what happens: plain rounding, better rounding, training, or nothing suffices?

    python benchmarks/basin_prediction.py --only mnist     # cases whose name holds a match; resumable
    python benchmarks/basin_prediction.py --summary        # confusion matrix, balanced accuracy
    python benchmarks/basin_prediction.py --fit            # thresholds from the cases that are for fitting

Cases are nets × plans. The prediction is written before the truth is measured: the first of nearest rounding, descent
with corrected norms, and two epochs of training with quantized weights (`recover_` after that rounding, its defaults)
whose rise of cross-entropy on test data is at most 0.05 nats; else infeasible. An epoch is 10,000 images in batches of
64, or 1,600 windows of 128 tokens in batches of 16. Test data takes no part in anything else; the ResNet-20, which has
seen all training images, is judged beforehand on the other half of CIFAR-10's test images. Half of the cases, drawn by
the hash of their name, are for fitting thresholds; the figures are those of the other half. Cases run in an order that
takes the nets in turn and is otherwise that of the hashes, so that a part of them is a fair sample. Needs CIFAR-10,
MNIST, Fashion-MNIST and TinyStories below $GEOQUANT_DATA_DIR, weights below $GEOQUANT_WEIGHTS_DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import nn

from common import RESULTS, parser, write_results
from geoquant import Plan, diagnose, uniform_plan
from geoquant.basin import THRESHOLDS, VERDICTS, Evidence, LossRise, Thresholds, WalkSettings, decide
from geoquant.cli.inputs import fast
from geoquant.data import load_images
from geoquant.data.text import TextSet, load_text
from geoquant.data.tokens import calibration_batches, evaluation_batches
from geoquant.errors import GeoquantError
from geoquant.models import load_weights_
from geoquant.models.zoo import resnet20_cifar10, strided_cnn3_grey
from geoquant.quantize import quantize
from geoquant.recovery import recover_
from geoquant.storage import atomic_path, digest, finite, write_text
from geoquant.training import fit_classifier_

TOLERANCE = 0.05
CHANNEL = tuple(f"int{bits}" for bits in range(2, 9))
AFFINE = ("int2:affine", "int3:affine", "int4:affine")
TENSOR = tuple(f"int{bits}:narrow:maxabs:tensor" for bits in range(2, 7))
FEW = ("ternary", "ternary:tensor", "binary", "binary:tensor")
GROUPS = ("int2:group32", "ternary:group32", "binary:group32")
KEPT = {
    "ends8": (*FEW, "int2", *TENSOR[:2]),
    "odd8": ("ternary", *FEW[2:], TENSOR[0]),
}
SETTINGS: dict[str, Any] = {
    "protocol": 3,
    "tolerance": TOLERANCE,
    "epochs": 2,
    "images": 10_000,
    "batch": 64,
    "calibration_images": 1024,
    "windows": 1_600,
    "window": 128,
    "calibration_windows": 128,
    "width_samples": 128,
    "seed": 0,
}

WALKS: dict[str, Any] = asdict(WalkSettings())
"""How a diagnosis looks for codewords. Other settings diagnose anew, and keep what happened."""


@dataclass(frozen=True)
class Case:
    """A net and a plan: one grid everywhere, or the first and last ("ends8") or every other ("odd8") layer at 8 bits.

    >>> Case("mnist", "int2", "ends8").name
    'mnist/int2+ends8'
    """

    net: str
    grid: str
    kept: str = ""

    @property
    def name(self) -> str:
        """Unique, and the base of the split."""
        return f"{self.net}/{self.grid}{self.kept and '+'}{self.kept}"

    @property
    def hash(self) -> bytes:
        """Draws the half and the order."""
        return hashlib.sha256(self.name.encode()).digest()

    @property
    def fits(self) -> bool:
        """Whether thresholds may look at it."""
        return self.hash[0] % 2 == 0

    def plan(self, model: nn.Module) -> Plan:
        """Return the plan."""
        names = uniform_plan(model, self.grid).inventory.names
        kept = {"": (), "ends8": (names[0], names[-1]), "odd8": names[1::2]}[self.kept]
        return uniform_plan(model, self.grid, dict.fromkeys(kept, "int8"))


@dataclass(frozen=True, eq=False)
class Study:
    """A trained net with its data.

    Attributes:
        model: in float.
        calibration: what rounding sees.
        judging: what a diagnosis is judged on; not seen by the net.
        train: an epoch.
        truth: the rise of the loss on test samples, which take no part in anything else.
    """

    model: nn.Module
    calibration: Sequence[Any]
    judging: Sequence[Any]
    train: Sequence[Any]
    truth: LossRise


def grey(name: str, folder: Path) -> Study:
    """Train the small net once (three epochs); calibrate and judge on 5,000 images that it was not trained on."""
    rest, held = load_images(name, "train").split_off(5000, SETTINGS["seed"])
    path = folder / f"{name}.safetensors"
    model = fast(strided_cnn3_grey())
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        torch.manual_seed(SETTINGS["seed"])
        model = fast(strided_cnn3_grey())
        fit_classifier_(model, *rest.tensors(), epochs=3, seed=SETTINGS["seed"])
        with atomic_path(path) as temporary:
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, temporary)
    unseen = held.batches(64, None, SETTINGS["seed"])
    count = SETTINGS["calibration_images"] // 64
    return Study(
        model.eval(),
        unseen[:count],
        unseen[count:],
        rest.batches(SETTINGS["batch"], SETTINGS["images"], SETTINGS["seed"]),
        LossRise(model, load_images(name, "test").batches(500), "cross_entropy"),
    )


def cifar(_: Path) -> Study:
    """The pretrained ResNet-20; one half of the test images judges diagnoses, the other one what happens."""
    model = resnet20_cifar10()
    load_weights_(model, Path(os.environ["GEOQUANT_WEIGHTS_DIR"], "cifar10_resnet20.safetensors"))
    model = fast(model.eval())
    train = load_images("cifar10", "train")
    test, unseen = load_images("cifar10", "test").split_off(5000, SETTINGS["seed"])
    return Study(
        model,
        train.batches(64, SETTINGS["calibration_images"], SETTINGS["seed"] + 1, "imagenet"),
        unseen.batches(64, 2048, SETTINGS["seed"], "imagenet"),
        train.stream(SETTINGS["batch"], SETTINGS["images"], SETTINGS["seed"], "imagenet"),
        LossRise(model, test.stream(250, None, None, "imagenet"), "cross_entropy"),
    )


def stories(_: Path) -> Study:
    """The 260K-parameter Llama; stories 0–149 test, 150–249 calibrate, 250–449 judge, the rest train."""
    import transformers

    place = Path(os.environ["GEOQUANT_WEIGHTS_DIR"], "stories260K")
    model = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    documents = load_text("tinystories/v2_train_head.txt", "train").documents

    def windows(first: int, last: int | None, limit: int) -> Sequence[Any]:
        text = TextSet(documents[first:last], "TinyStories")
        return list(calibration_batches(text, tokenizer, SETTINGS["window"], batch_size=16, limit=limit, seed=0))

    test = evaluation_batches(TextSet(documents[:150], "TinyStories"), tokenizer, 256, batch_size=16)
    return Study(
        model,
        windows(150, 250, SETTINGS["calibration_windows"]),
        windows(250, 450, 256),
        windows(450, None, SETTINGS["windows"]),
        LossRise(model, list(test), "cross_entropy"),
    )


NETS: dict[str, Callable[[Path], Study]] = {
    "mnist": lambda folder: grey("mnist", folder),
    "fashion_mnist": lambda folder: grey("fashion_mnist", folder),
    "resnet20": cifar,
    "stories260K": stories,
}
load_study = cache(lambda net, folder: NETS[net](folder))


def cases(turns: int | None = None) -> list[Case]:
    """List the cases, the nets in turn: all, or the first `turns` of each net."""
    plans = [(grid, "") for grid in (*CHANNEL, *AFFINE, *TENSOR, *FEW, *GROUPS)]
    plans += [(grid, kept) for kept, grids in KEPT.items() for grid in grids]
    drawn = [sorted((Case(net, *plan) for plan in plans), key=lambda case: case.hash) for net in NETS]
    return [case for turn in list(zip(*drawn, strict=True))[:turns] for case in turn]


def predicted(case: Case, study: Study) -> dict[str, Any]:
    """Diagnose on calibration data, before anything is quantized for good."""
    start = time.process_time()
    found = diagnose(
        study.model,
        case.plan(study.model),
        study.calibration,
        held_out=study.judging,
        tolerance=TOLERANCE,
        samples=SETTINGS["width_samples"],
        seed=SETTINGS["seed"],
    )
    return {
        "verdict": found.verdict,
        "evidence": finite(asdict(found.evidence)),
        "constructive": asdict(found.constructive),
        "layers": list(found.layers),
        "candidates": finite([asdict(each) for each in found.candidates]),
        "walks": WALKS,
        "average_bits": case.plan(study.model).average_bits,
        "cpu_seconds": time.process_time() - start,
    }


def happened(case: Case, study: Study) -> dict[str, Any]:
    """Try one remedy after the other on test data; stop at the first that suffices."""
    start, plan = time.process_time(), case.plan(study.model)
    rises, verdict = {}, "infeasible"
    for name, deployed in remedies(study, plan):
        found = study.truth.of(deployed)
        rises[name] = finite(asdict(found))
        if found.value <= TOLERANCE:
            verdict = name
            break
    return {"verdict": verdict, "rises": rises, "cpu_seconds": time.process_time() - start}


def remedies(study: Study, plan: Plan) -> Iterator[tuple[str, nn.Module]]:
    """Yield models: nearest rounding, the default pipeline, and what training towards the float answers makes of it."""
    yield "ptq", quantize(study.model, plan, rounding="nearest", norms="none")
    model = quantize(study.model, plan, study.calibration, seed=SETTINGS["seed"])
    yield "better-rounding", model
    recover_(
        model, plan, study.train, teacher=study.model, epochs=SETTINGS["epochs"], seed=SETTINGS["seed"], trace_every=0
    )
    yield "qat", model


def run(case: Case, folder: Path) -> None:
    """Predict, write that down, measure, write that down."""
    path = folder / f"{case.name.replace('/', '-').replace(':', '_')}.json"
    key = digest({"case": case.name, "settings": SETTINGS})
    document: dict[str, Any] = {"case": case.name, "fit": case.fits, "settings": SETTINGS, "key": key}
    if path.exists():
        written = json.loads(path.read_text())
        document = written if written["key"] == key else document
    if document.get("predicted", {}).get("walks") != WALKS:
        document.pop("predicted", None)
    study = load_study(case.net, folder)
    for part, measure in (("predicted", predicted), ("happened", happened)):
        if part not in document:
            document[part] = measure(case, study)
            write_text(path, json.dumps(document, indent=1) + "\n")
    both = [document[part] for part in ("predicted", "happened")]
    said, true = (part["verdict"] for part in both)
    print(f"{case.name}: {said} -> {true} ({sum(part['cpu_seconds'] for part in both):.0f} s)", flush=True)


_EVIDENCE = TypeAdapter(Evidence)


def finished(folder: Path) -> list[dict[str, Any]]:
    """Read all finished cases of these settings."""
    known = {digest({"case": case.name, "settings": SETTINGS}) for case in cases()}
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [each for each in documents if each.get("key") in known and "happened" in each]


def verdicts(rows: Sequence[dict[str, Any]], thresholds: Thresholds) -> list[tuple[str, str]]:
    """Return (predicted, true) verdicts; predictions follow from the evidence that was written down before."""
    return [
        (decide(_EVIDENCE.validate_python(row["predicted"]["evidence"]), thresholds)[0], row["happened"]["verdict"])
        for row in rows
    ]


def balanced_accuracy(pairs: Sequence[tuple[str, str]]) -> float:
    """Return the mean, over the true classes, of the share that was predicted right.

    >>> balanced_accuracy([("ptq", "ptq"), ("ptq", "ptq"), ("qat", "ptq"), ("qat", "qat")])
    0.8333333333333333
    """
    totals = Counter(true for _, true in pairs)
    right = Counter(true for guess, true in pairs if guess == true)
    return sum(right[name] / count for name, count in totals.items()) / len(totals)


def fit(rows: Sequence[dict[str, Any]]) -> Thresholds:
    """Choose thresholds by balanced accuracy on the cases for fitting; of equals those of rounding nearest to 1."""
    scale = [2 ** (k / 4) for k in range(-8, 21)]
    rounding = [value for value in scale if 0.5 <= value <= 2]
    found = [
        (balanced_accuracy(verdicts(rows, Thresholds(a, b, c))), Thresholds(a, b, c))
        for a, b, c in itertools.product(rounding, rounding, scale)
    ]
    best = max(score for score, _ in found)
    equal = [each for score, each in found if score == best]
    close = min(max(a.nearest, 1 / a.nearest) * max(a.rounded, 1 / a.rounded) for a in equal)
    near = [a for a in equal if max(a.nearest, 1 / a.nearest) * max(a.rounded, 1 / a.rounded) == close]
    return near[len(near) // 2]


def summary(rows: Sequence[dict[str, Any]], thresholds: Thresholds) -> dict[str, Any]:
    """Return confusion matrices and balanced accuracy of both halves."""
    parts: dict[str, Any] = {"thresholds": asdict(thresholds), "split": "sha256(name)[0] even: for fitting"}
    for name, chosen in (("fit", True), ("check", False)):
        pairs = verdicts([row for row in rows if row["fit"] is chosen], thresholds)
        parts[name] = {
            "cases": len(pairs),
            "balanced_accuracy": balanced_accuracy(pairs) if pairs else None,
            "classes": dict(Counter(true for _, true in pairs)),
            "confusion": {true: dict(Counter(g for g, t in pairs if t == true)) for true in VERDICTS},
        }
    guesses = verdicts(rows, thresholds)
    parts["rows"] = [
        {
            "case": row["case"],
            "fit": row["fit"],
            "predicted": guess,
            "happened": true,
            "evidence": row["predicted"]["evidence"],
            "constructive": row["predicted"]["constructive"],
            "rises": row["happened"]["rises"],
            "cpu_seconds": [round(row[part]["cpu_seconds"], 1) for part in ("predicted", "happened")],
        }
        for row, (guess, true) in zip(rows, guesses, strict=True)
    ]
    return parts


def show(found: dict[str, Any]) -> None:
    for name in ("fit", "check"):
        part = found[name]
        print(f"{name}: {part['cases']} cases, balanced accuracy {part['balanced_accuracy']}")
        for true in VERDICTS:
            row = part["confusion"][true]
            print(f"  {true:>16}: " + "  ".join(f"{guess} {row.get(guess, 0)}" for guess in VERDICTS))
    for row in found["rows"]:
        if row["predicted"] != row["happened"]:
            print(f"  wrong: {row['case']}: {row['predicted']} -> {row['happened']} {row['rises']}")


def read_arguments() -> argparse.Namespace:
    made = parser(__doc__ or "", "basin_prediction")
    made.add_argument("--cases", type=Path, default=RESULTS / "basin_prediction", help="one file a case")
    made.add_argument("--only", default="", help="only cases in whose name this regular expression is found")
    made.add_argument("--turns", type=int, help="only so many cases of each net, the first of their order")
    made.add_argument("--list", action="store_true", help="name the cases and stop")
    made.add_argument("--summary", action="store_true", help="sum up what is finished")
    made.add_argument("--fit", action="store_true", help="print the thresholds that the cases for fitting suggest")
    return made.parse_args()


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    chosen = [case for case in cases(arguments.turns) if re.search(arguments.only, case.name)]
    if arguments.list:
        for case in chosen:
            print(case.name, "fit" if case.fits else "check")
    elif arguments.summary or arguments.fit:
        rows = finished(arguments.cases)
        if not rows:
            raise GeoquantError(f"no case of these settings is finished in {arguments.cases}; run some first")
        if arguments.fit:
            print(fit([row for row in rows if row["fit"]]))
        found = summary(rows, THRESHOLDS)
        show(found)
        if arguments.summary:
            write_results(arguments, found)
    else:
        for case in chosen:
            run(case, arguments.cases)


if __name__ == "__main__":
    main()
