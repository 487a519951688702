"""`geoquant quantize`: do what a plan says, or find one first, and save what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from geoquant import progress
from geoquant.cli.activating import (
    ActivationBits,
    ActivationGrids,
    ActivationRange,
    ActivationSites,
    OfferedGrids,
    keys_and_values,
    read_activations,
    read_offer,
    tell_what_stays,
    with_inputs,
)
from geoquant.cli.app import app
from geoquant.cli.inputs import (
    AsJson,
    BatchSize,
    Fold,
    Images,
    Model,
    NormalizeOption,
    Seed,
    Source,
    Task,
    Weights,
    Window,
    read_model,
    say,
    show,
)
from geoquant.cli.measure import (
    AverageBits,
    BitOperations,
    Bytes,
    Exclude,
    Fix,
    Fuse,
    Grids,
    Latency,
    LatencyFile,
    Lower,
    Menu,
    Objective,
    Only,
    Predictors,
    Solver,
    Upper,
    grids_to_measure,
    make_budget,
    measure,
    plan_document,
    predictors_to_measure,
    read_constraints,
)
from geoquant.cli.searching import (
    CertifyImages,
    CertifyOn,
    MaxDrop,
    RefinePlan,
    SearchImages,
    at_the_budget,
    plan_within,
    read_parts,
    refine_plan,
    within_document,
)
from geoquant.cli.streaming import Stream, refuse, stream_model, stream_plan
from geoquant.export import save
from geoquant.models import find_operations, take_inventory
from geoquant.plan import Plan, allocate, plan_text
from geoquant.quantize import (
    REFINEMENTS,
    quantize_,
    quantized_state,
)
from geoquant.rounding import ROUNDINGS
from geoquant.transforms import TRANSFORMS


@app.command("quantize")
def quantize_command(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder for model.safetensors and plan.json.")],
    data: Annotated[str | None, typer.Option(help="Calibration data, as for `profile`.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan from `geoquant allocate`, instead of a budget.")] = None,
    average_bits: AverageBits = None,
    size: Bytes = None,
    bit_operations: BitOperations = None,
    latency: Latency = None,
    latency_table: LatencyFile = None,
    activation_bits: ActivationBits = None,
    weights: Weights = None,
    normalize: NormalizeOption = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="fast (nearest, norms corrected), balanced (GPTQ, then descent, norms corrected; the default with "
            "--data) or best (codes learned afterwards; minutes). Without --data: plain nearest."
        ),
    ] = None,
    rounding: Annotated[str | None, typer.Option(help=f"Instead of the effort's: {', '.join(ROUNDINGS)}.")] = None,
    norms: Annotated[
        str | None,
        typer.Option(help="relative (correct batch norms and biases for what rounding moved) or none."),
    ] = None,
    refine: Annotated[str | None, typer.Option(help=f"Learn codes afterwards: none, {', '.join(REFINEMENTS)}.")] = None,
    transforms: Annotated[
        list[str] | None,
        typer.Option(
            "--transform",
            help="Rewrite the model first into one that computes the same and rounds better: "
            f"{', '.join(TRANSFORMS)}. Repeatable, in this order; needs --data.",
        ),
    ] = None,
    activations: ActivationGrids = None,
    activation_range: ActivationRange = None,
    activation_grids: OfferedGrids = None,
    activation_sites: ActivationSites = None,
    kv_bits: Annotated[
        int | None,
        typer.Option(min=2, max=8, help="Keys and values of a language model in so many bits, per head and token."),
    ] = None,
    max_drop: MaxDrop = None,
    search_images: SearchImages = 2048,
    certify_images: CertifyImages = 8192,
    certify_on: CertifyOn = "train",
    evaluations: RefinePlan = None,
    stream: Stream = False,
    task: Task = None,
    window: Window = None,
    images: Images = None,
    batch_size: BatchSize = None,
    grids: Grids = None,
    predictors: Predictors = None,
    only: Only = None,
    exclude: Exclude = None,
    solver: Solver = "milp",
    objective: Objective = "sum",
    menu: Menu = None,
    lower: Lower = None,
    upper: Upper = None,
    fix: Fix = None,
    fuse: Fuse = None,
    fold_batch_norm: Fold = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Quantize a model by a plan, or within a budget (then it is profiled first), and save it packed.

    Examples: `geoquant quantize geoquant.models.zoo:resnet20_cifar10 --weights resnet20.safetensors
    --data cifar10 --normalize imagenet --average-bits 3 --output out/`

    `geoquant quantize MODEL --data DATA --average-bits 4 --activation-bits 4 --output out/` (both chosen)

    `geoquant quantize stories260K/ --data tinystories/v2_train_head.txt --average-bits 3 --output out/`
    """
    limits = (average_bits, size, bit_operations, latency, latency_table)
    how: dict[str, Any] = {"solver": solver, "objective": objective}
    wishes = read_constraints(menu, lower, upper, fix, fuse)
    source = None if data is None else Source(data, normalize, weights, batch_size, seed, window)
    if stream:
        other = {"effort": effort, "norms": norms, "refine": refine, "activations": activations, "max_drop": max_drop}
        other |= {"activation_bits": activation_bits, "activation_grids": activation_grids, "kv_bits": kv_bits}
        refuse(model, **other, refine_plan=evaluations, weights=weights, fold_batch_norm=fold_batch_norm)
        streamed = stream_plan(model, task, plan, grids, limits, {**how, **wishes})
        path = stream_model(model, streamed, output, source, rounding=rounding, task=task, samples=images, seed=seed)
        show(plan_text(streamed), plan_document(streamed, path), as_json)
        return
    net = read_model(model, weights, fold_batch_norm, task)
    budget = make_budget(*limits, activation_bits) if plan is None and max_drop is None else None
    one_of = (plan is not None, max_drop is not None, any(limit is not None for limit in limits))
    _check_asked(one_of, data is not None, activation_bits is not None, evaluations is not None)
    if kv_bits is not None:
        activations = [*(activations or ()), *keys_and_values(net, kv_bits)]
    inputs = read_activations(take_inventory(net), find_operations(net), activations, activation_range)
    chosen = None if plan is None else with_inputs(Plan.load(plan), inputs)
    offered = read_offer(activation_grids, activation_bits, budget, inputs is not None, activation_range)
    batches = None if source is None else source.calibration(net, images)
    recipe: dict[str, Any] = {"effort": effort, "rounding": rounding, "norms": norms, "refine": refine, "seed": seed}
    recipe["transforms"] = tuple(transforms or ())
    more: dict[str, Any] = {}
    if chosen is None:
        assert source is not None
        assert batches is not None
        parts = None
        if max_drop is not None:  # too little data should say so before minutes of work
            parts = read_parts(source, net, batches, (search_images, certify_images), certify_on)
        names, candidates = predictors_to_measure(predictors, net, offered), grids_to_measure(grids, net, budget)
        asked = names if only or exclude else at_the_budget(net, names, budget, batches, recipe)
        result = measure(net, batches, candidates, asked, only, exclude, seed, False, offered, activation_sites)
        if max_drop is not None and parts is not None:
            wishes |= {"activations": inputs, "average_activation_bits": activation_bits}
            found = plan_within(net, result, batches, parts, max_drop, recipe, wishes)
            chosen, more = found.plan, within_document(found)
        else:
            assert budget is not None
            chosen = allocate(result, budget, activations=inputs, **how, **wishes)
    if evaluations is not None and batches is not None:
        chosen = refine_plan(net, chosen, batches, evaluations, recipe, output)
    with progress.shown():
        quantize_(net, chosen, batches, **recipe)
    _tell(net)
    path = save(net, chosen, output)
    say(f"wrote {path}, {path.stat().st_size:,} bytes")
    show(plan_text(chosen), {**plan_document(chosen, path), **more}, as_json)


def _check_asked(one_of: tuple[bool, bool, bool], data: bool, activation_bits: bool, refine_plan: bool) -> None:
    """Refuse options that contradict each other; `one_of` says whether a plan, a drop, or a budget is given."""
    plan, max_drop, _ = one_of
    if not plan and not data:
        raise typer.BadParameter("a budget needs --data to calibrate on (or give --plan)")
    if sum(one_of) > 1:
        raise typer.BadParameter("give --plan or a budget or --max-drop, not several")
    if plan and activation_bits:
        raise typer.BadParameter("a plan has its activations: give --activation-bits to `geoquant allocate`")
    if refine_plan and (not data or max_drop):
        raise typer.BadParameter("--refine-plan needs --data, and would leave a certificate of --max-drop behind")


def _tell(net: nn.Module) -> None:
    """Say what was done to the model besides rounding, and what was not done."""
    for report in quantized_state(net).transforms:
        say(str(report))
    tell_what_stays(net)
