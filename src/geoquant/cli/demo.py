"""`geoquant demo`: the whole path in under a minute, on data that comes with scikit-learn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from geoquant import progress
from geoquant.cli.app import app
from geoquant.cli.demo_recovery import diagnose_and_recover
from geoquant.cli.demo_training import train_in_few_bits
from geoquant.cli.inputs import AsJson, Seed, fast, say, show
from geoquant.cli.show import waterfalls
from geoquant.data import digits
from geoquant.export import load, save
from geoquant.models import inference
from geoquant.models.zoo import digits_cnn
from geoquant.plan import Budget, Plan, align, allocate, uniform_plan
from geoquant.quantize import quantize_
from geoquant.report import Point, comparison_plans, measure_point, sweep, write_report
from geoquant.sensitivity import Profile, profile
from geoquant.training import fit_classifier_

WIDTHS = (2, 3, 4)
EPOCHS = 8
COMPARED = ("one_layer_kl", "weight_error", "hawq_v2", "condition_number")


def train_digits(seed: int) -> nn.Module:
    """Train the demo's convolutional net on the training half of the digits."""
    torch.manual_seed(seed)
    model = fast(digits_cnn())
    inputs, labels = digits("train").tensors("dataset")
    fit_classifier_(model, inputs, labels, epochs=EPOCHS, seed=seed, batch_size=64)
    return model


def plans_at_equal_bytes(measured: Profile) -> dict[tuple[str, str], Plan]:
    """Pair each uniform width with the plan that geoquant makes of the same bytes."""
    plans = {}
    for bits in WIDTHS:
        name = next(grid for grid in measured.grids if grid.startswith(f"int{bits}"))
        uniform = uniform_plan(measured.inventory, name)
        plans[("uniform", name)] = uniform
        plans[("geoquant", f"{uniform.bytes:,} bytes")] = allocate(measured, Budget(bytes=uniform.bytes))
    return plans


def saved_and_reloaded(model: nn.Module, plan: Plan, folder: Path, batch: Tensor) -> int:
    """Save, reload into a fresh net, and insist on the same logits and the predicted size; return the size."""
    path = save(model, plan, folder)
    fresh = load(path, fast(digits_cnn())).eval()
    with inference(model), inference(fresh):
        if not torch.equal(model(batch), fresh(batch)):
            raise RuntimeError("the reloaded model differs from the saved one")
    size = path.stat().st_size
    if size != plan.bytes:
        raise RuntimeError(f"the file takes {size} bytes where the plan says {plan.bytes}")
    return size


def table_text(points: tuple[Point, ...], float_point: Point) -> str:
    """Show float, uniform and geoquant side by side."""
    rows = [("method", "plan", "average bits", "bytes", "accuracy", "KL to float")]
    for point in (float_point, *points):
        accuracy = f"{100 * point.accuracy.value:.1f} % ± {100 * point.accuracy.stderr:.1f}"
        size = (f"{point.average_bits:.2f}", f"{point.bytes:,}")
        rows.append((point.method, point.label, *size, accuracy, f"{point.kl.value:.4f}"))
    return align(rows, (False, False, True, True, True, True))


def allocate_and_report(model: nn.Module, output: Path, seed: int) -> tuple[str, dict[str, Any]]:
    """Measure, allocate, quantize, diagnose, recover, save and report; return a text and its figures."""
    images = digits("train")
    calibration = images.batches(128, limit=256, seed=seed, normalize="dataset")
    test = digits("test").batches(256, normalize="dataset")
    say(f"profiling every layer at every width by {len(COMPARED)} predictors, and the geometry of the loss")
    measured = profile(model, calibration, predictors=COMPARED, seed=seed, geometry=True)
    say("allocating, quantizing and evaluating")
    pairs = plans_at_equal_bytes(measured)
    deployed = {("geoquant + descent", label): plan for (name, label), plan in pairs.items() if name == "geoquant"}
    points = sweep(model, pairs, test) + sweep(model, deployed, test, calibration=calibration)
    everything = points + sweep(model, comparison_plans(measured, (2.5, 3, 4, 5)), test)
    float_point = measure_point(model, None, test, "float", "float32")
    chosen = [plan for (method, _), plan in pairs.items() if method == "geoquant"]
    falls = waterfalls(model, chosen, calibration[0], 4)
    say("one bit a weight: diagnosing, rounding, and training what rounding breaks")
    mended = diagnose_and_recover(model, seed)
    measured.save(output)
    quantize_(model, chosen[1], calibration, seed=seed)
    size = saved_and_reloaded(model, chosen[1], output / "w3", test[0][0])
    write_report(
        output / "report.html",
        "geoquant demo: digits",
        profile=measured,
        plans=chosen,
        points=everything,
        float_point=float_point,
        waterfalls=falls,
        diagnoses=[mended.diagnosis],
        trace=mended.trace,
    )
    figures = [{"method": p.method, "label": p.label, "bytes": p.bytes, "accuracy": p.accuracy.value} for p in points]
    saved = f"saved and reloaded {output / 'w3'}: {size:,} bytes as predicted, logits bit-identical"
    text = f"{table_text(points, float_point)}\n\n{saved}\n\n{mended}"
    return text, {"bytes": size, "points": figures, "recovery": mended.to_json()}


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option(help="Folder for artifacts and report.")] = Path("geoquant-demo"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train, profile, allocate, quantize, save, reload; diagnose, recover; train in few bits; needs no network.

    Example: `geoquant demo --output demo/`, then open `demo/report.html`
    """
    start = time.perf_counter()
    torch.set_num_threads(1)  # the net is too small to gain by more, and on a busy machine more are far slower
    with progress.shown():
        say("training a small convolutional net on scikit-learn's digits")
        model = train_digits(seed)
        text, figures = allocate_and_report(model, output, seed)
        say("training the same net in few bits, forward, backward and all")
        training_table, training = train_in_few_bits(seed)
    seconds, page = time.perf_counter() - start, (output / "report.html").resolve()
    document = {"report": str(page), "seconds": seconds, **figures, "training": training}
    show(f"{text}\n\n{training_table}\n\nreport: {page}  ({seconds:.0f} s)", document, as_json)
