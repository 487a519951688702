"""`geoquant profile` and `geoquant allocate`: the evidence, and the plan from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from geoquant import progress
from geoquant.cli.activating import ActivationBits, ActivationGrids, ActivationSites, OfferedGrids, read_activations
from geoquant.cli.app import app
from geoquant.cli.geometry import geometry_text
from geoquant.cli.inputs import (
    AsJson,
    BatchSize,
    Data,
    Fold,
    Images,
    Model,
    NormalizeOption,
    Seed,
    Source,
    Task,
    Weights,
    Window,
    pairs,
    read_model,
    say,
    show,
)
from geoquant.cluster import Cluster
from geoquant.geometry import geometry_cost
from geoquant.models import FUSED_LAYERS, inference, predict, take_inventory
from geoquant.plan import Budget, LatencyTable, Plan, align, allocate, plan_text, uniform_plan
from geoquant.sensitivity import (
    DEFAULT_GRIDS,
    NARROW_GRIDS,
    PREDICTORS,
    ActivationTable,
    Predictor,
    Profile,
    activation_cost,
    default_predictors,
    find_activations,
    make_subject,
    profile,
)
from geoquant.sensitivity.one_input_kl import LAYERS
from geoquant.sensitivity.profiling import geometry_document

Grids = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated grids to measure, such as int2,int4,int4:affine:group64. By default int2 to int8 with "
        "scales of either sign, and binary and ternary for a budget that int2 and its scales would exceed."
    ),
]
Predictors = Annotated[
    str | None,
    typer.Option(
        "--predictors",
        help="Comma-separated predictors; plans are made with the first. By default modelopt_gradient where batch "
        "norms are corrected, else one_layer_kl; `profile` adds weight_error.",
    ),
]
Only = Annotated[list[str] | None, typer.Option(help="Measure only these layers (name or `re:` pattern; repeatable).")]
Geometry = Annotated[
    bool,
    typer.Option(
        "--geometry/--no-geometry",
        help="Measure traces, norms, spectrum and curvature too; plans do not need them. The cost is said first.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Share the work among Ray workers: `local` starts them here, else the address of a cluster. The profile "
        "is the same bit for bit.",
    ),
]
Jobs = Annotated[int, typer.Option(min=1, help="With --ray: workers at a time.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Leave these layers in float (name or `re:`; repeatable).")]
AverageBits = Annotated[float | None, typer.Option(help="Budget: stored bits per weight, scales included.")]
Bytes = Annotated[int | None, typer.Option("--bytes", help="Budget: size of the artifact on disk.")]
BitOperations = Annotated[
    float | None,
    typer.Option(
        help="Budget: multiplications × weight bits × activation bits (32 in float), for one sample. With "
        "--activation-grids both are chosen."
    ),
]
Latency = Annotated[float | None, typer.Option(help="Budget: milliseconds by --latency-table.")]
LatencyFile = Annotated[
    Path | None,
    typer.Option(
        "--latency-table",
        help='JSON with measured times: {"milliseconds": {LAYER: {GRID: TIME}}}; GRID may be int4/int8.',
    ),
]
Solver = Annotated[str, typer.Option(help="milp (exact), greedy, proportional, gradient, uniform, random_search.")]
Objective = Annotated[str, typer.Option(help="sum of the damages, or worst layer.")]
Menu = Annotated[str | None, typer.Option(help="Only these widths or grids, such as 4,8.")]
Lower = Annotated[list[str] | None, typer.Option(help="Least width, as NAME=BITS (`re:.*=3` for all; repeatable).")]
Upper = Annotated[list[str] | None, typer.Option(help="Largest width, as NAME=BITS (repeatable).")]
Fix = Annotated[list[str] | None, typer.Option(help="NAME=GRID or NAME=BITS; fp32 leaves a layer alone (repeatable).")]
Fuse = Annotated[
    list[str] | None,
    typer.Option(
        help="Layers that share a grid: names joined by commas, a `re:` pattern, or `llama` for q/k/v and gate/up, "
        "which engines join (repeatable)."
    ),
]


def split(text: str) -> tuple[str, ...]:
    """Split a comma-separated option."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def grids_to_measure(given: str | None, model: nn.Module, budget: Budget | None = None) -> tuple[str, ...]:
    """Return the grids that were asked for, else the default ones: those of one bit too where a budget needs them."""
    if given is not None:
        return split(given)
    smallest = uniform_plan(model, DEFAULT_GRIDS[0])
    limits = () if budget is None else ((budget.average_bits, smallest.average_bits), (budget.bytes, smallest.bytes))
    short = any(limit is not None and limit < least for limit, least in limits)
    return (*NARROW_GRIDS, *DEFAULT_GRIDS) if short else DEFAULT_GRIDS


def predictors_to_measure(given: str | None, model: nn.Module, activations: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the predictors that were asked for, else those that suit the model."""
    return default_predictors(model, bool(activations)) if given is None else split(given)


def measure(
    model: nn.Module,
    batches: Sequence[Any],
    grids: Sequence[str],
    predictors: Sequence[str | Predictor],
    only: list[str] | None,
    exclude: list[str] | None,
    seed: int,
    geometry: bool = False,
    activations: Sequence[str] = (),
    activation_sites: Sequence[str] | None = None,
    cluster: Cluster | None = None,
) -> Profile:
    """Say what profiling will cost, then do it with a bar."""
    subject = make_subject(model, batches, grids=grids, only=only, exclude=exclude, seed=seed)
    chosen = [PREDICTORS[predictor] if isinstance(predictor, str) else predictor for predictor in predictors]
    cost, names = sum(each.estimated_cost(subject) for each in chosen), ", ".join(each.name for each in chosen)
    more = geometry_cost(model, subject.batches, subject.sites) if geometry else 0.0
    with inference(model):
        start = time.perf_counter()
        predict(model, batches[0])
    each = (time.perf_counter() - start) * len(batches)
    say(
        f"profiling {len(subject.sites)} layers × {len(subject.grids)} grids by {names}: about "
        f"{cost:.0f} forwards over the calibration set, some {max(cost * each, 1):.0f} s here"
    )
    if geometry:
        say(f"geometry: about {more:.0f} forwards more, some {max(more * each, 1):.0f} s here; --no-geometry skips it")
    options: dict[str, Any] = {"only": only, "exclude": exclude, "seed": seed, "geometry": geometry}
    if activations:
        sites = find_activations(model, take_inventory(model), activation_sites or (LAYERS,))
        extra = activation_cost(model, sites, len(activations), batches[0])
        say(
            f"activations: {len(sites)} sites × {len(activations)} grids, about {extra:.0f} forwards more, some "
            f"{max(extra * each, 1):.0f} s here"
        )
        options |= {"activations": activations, "activation_sites": sites}
    if cluster is not None:
        with cluster, progress.shown():
            return profile(model, batches, grids=grids, predictors=predictors, cluster=cluster, **options)
    with progress.shown():
        return profile(model, batches, grids=grids, predictors=predictors, **options)


def profile_text(result: Profile) -> str:
    """Show the default predictor's damages as a table, and what everything cost."""
    table = result.table()
    rows = [("layer", "weights", *table.grids)]
    for site in result.inventory.sites:
        if site.name in table.sites:
            rows.append((site.name, f"{site.weights:,}", *(f"{damage:.1e}" for damage in table.row(site.name))))
    unit = table.unit or "score, ranks only"
    costs = "; ".join(
        f"{each.predictor} {each.cost:.1f} forward-equivalents, {seconds:.1f} s"
        for each, seconds in zip(result.tables, result.seconds, strict=True)
    )
    text = f"{align(rows, (False, *[True] * (len(rows[0]) - 1)))}\n\n{table.predictor} in {unit}\n{costs}"
    if result.activations is not None:
        text += f"\n\n{activations_text(result.activations)}"
    return text if result.geometry is None else f"{text}\n\n{geometry_text(result.geometry)}"


def activations_text(found: ActivationTable) -> str:
    """Show the damage of every activation at every grid, and what it cost."""
    rows = [("input", "numbers", *found.grids)]
    for site, count in zip(found.sites, found.elements, strict=True):
        rows.append((site, f"{count:,}", *(f"{damage:.1e}" for damage in found.damages.row(site))))
    cost = f"{found.damages.predictor} {found.damages.cost:.1f} forward-equivalents"
    return f"{align(rows, (False, *[True] * (len(rows[0]) - 1)))}\n\n{found.damages.predictor} in nats\n{cost}"


@app.command("profile")
def profile_command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder for profile.json.")],
    weights: Weights = None,
    normalize: NormalizeOption = None,
    task: Task = None,
    window: Window = None,
    images: Images = None,
    batch_size: BatchSize = None,
    grids: Grids = None,
    predictors: Predictors = None,
    only: Only = None,
    exclude: Exclude = None,
    fold_batch_norm: Fold = False,
    activation_grids: OfferedGrids = None,
    activation_sites: ActivationSites = None,
    geometry: Geometry = True,
    ray: RayAddress = None,
    jobs: Jobs = 2,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure what each (layer, grid) choice costs, and what the model is like.

    With --activation-grids also what rounding each layer's input costs, so that `allocate --bit-operations` and
    `--activation-bits` choose both.

    Examples: `geoquant profile geoquant.models.zoo:resnet20_cifar10 --weights resnet20.safetensors
    --data cifar10 --normalize imagenet --output prof/`

    `geoquant profile stories260K/ --data tinystories/v2_train_head.txt --output prof/`
    """
    net = read_model(model, weights, fold_batch_norm, task)
    batches = Source(data, normalize, weights, batch_size, seed, window).calibration(net, images)
    offered = split(activation_grids or "")
    workers = None if ray is None else Cluster(ray, jobs)
    chosen, menu = predictors_to_measure(predictors, net, offered), grids_to_measure(grids, net)
    result = measure(net, batches, menu, chosen, only, exclude, seed, geometry, offered, activation_sites, workers)
    path = result.save(output)
    say(f"wrote {path}")
    document: dict[str, Any] = {"path": str(path), "cost": result.cost}
    document["tables"] = {table.predictor: table.damage for table in result.tables}
    if result.activations is not None:
        damages = result.activations.damages
        document["activations"] = dict(zip(damages.sites, damages.damage, strict=True))
    if result.geometry is not None:
        document["geometry"] = geometry_document(result.geometry)
    show(profile_text(result), document, as_json)


def plan_document(plan: Plan, path: Path | None = None) -> dict[str, Any]:
    """Return what `--json` prints of a plan."""
    document: dict[str, Any] = {
        "average_bits": plan.average_bits,
        "bytes": plan.bytes,
        "bit_operations": plan.bit_operations,
        "latency": plan.latency,
        "layers": dict(zip(plan.inventory.names, plan.names, strict=True)),
        "activations": dict(plan.activations),
        "average_activation_bits": plan.average_activation_bits,
    }
    if plan.evidence is not None:
        document["optimality"] = vars(plan.evidence.optimality)
    if path is not None:
        document["path"] = str(path)
    return document


def make_budget(
    average_bits: float | None,
    size: int | None,
    bit_operations: float | None,
    latency: float | None,
    latency_table: Path | None,
    activation_bits: float | None = None,
) -> Budget:
    """Read the limits of the command line; they should be refused before minutes of work, not after."""
    if latency_table is not None and latency is None:
        raise typer.BadParameter("--latency-table is there for a limit: give --latency MS too")
    times = None if latency_table is None else LatencyTable.load(latency_table)
    return Budget(average_bits, size, bit_operations, latency, times, average_activation_bits=activation_bits)


def read_constraints(
    menu: str | None, lower: list[str] | None, upper: list[str] | None, fix: list[str] | None, fuse: list[str] | None
) -> dict[str, Any]:
    """Turn what the command line said into arguments of `allocate`."""
    return {
        "menu": None if menu is None else split(menu),
        "lower": _widths(lower),
        "upper": _widths(upper),
        "fixed": pairs(fix or [], "fixed grid"),
        "fused": [group if group.startswith("re:") or group in FUSED_LAYERS else split(group) for group in fuse or []],
    }


def _widths(items: list[str] | None) -> dict[str, float] | None:
    if not items:
        return None
    try:
        return {name: float(width) for name, width in pairs(items, "width limit").items()}
    except ValueError as error:
        raise typer.BadParameter(f"a width limit needs a number: {error}") from error


@app.command("allocate")
def allocate_command(
    prof: Annotated[Path, typer.Argument(metavar="PROFILE", help="What `geoquant profile` wrote.")],
    output: Annotated[Path, typer.Option(help="File for the plan, such as plan.json.")],
    average_bits: AverageBits = None,
    size: Bytes = None,
    bit_operations: BitOperations = None,
    latency: Latency = None,
    latency_table: LatencyFile = None,
    activation_bits: ActivationBits = None,
    activations: ActivationGrids = None,
    predictor: Annotated[str | None, typer.Option(help="Which of the profile's predictors to trust.")] = None,
    solver: Solver = "milp",
    objective: Objective = "sum",
    menu: Menu = None,
    lower: Lower = None,
    upper: Upper = None,
    fix: Fix = None,
    fuse: Fuse = None,
    as_json: AsJson = False,
) -> None:
    r"""Choose a grid for every layer within a budget; needs no model and no data.

    Where the profile measured activations, budgets that depend on them choose their grids too, and several budgets
    hold at once.

    Examples: `geoquant allocate prof/ --average-bits 3 --fix conv1=8 --output plan.json`

    `geoquant allocate prof/ --bit-operations 6.5e8 --activations conv1=int8:affine --output plan.json`

    `geoquant allocate prof/ --average-bits 4 --activation-bits 4 --output plan.json`
    """
    budget = make_budget(average_bits, size, bit_operations, latency, latency_table, activation_bits)
    result = Profile.load(prof)
    measured = () if result.activations is None else result.activations.sites
    inputs = read_activations(result.inventory, [name for name in measured if ":" in name], activations, None)
    how: dict[str, Any] = {"predictor": predictor, "solver": solver, "objective": objective, "activations": inputs}
    plan = allocate(result, budget, **how, **read_constraints(menu, lower, upper, fix, fuse))
    path = plan.save(output)
    say(f"wrote {path}")
    show(plan_text(plan), plan_document(plan, path), as_json)
