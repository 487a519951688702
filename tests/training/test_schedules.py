"""The schedules: the contract, and the truth of each rule."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoquant.bounds import coupled_rule
from geoquant.errors import GeoquantError, UnknownNameError
from geoquant.training import COARSE, FINE, SCHEDULES, LayerFacts, LayerPrecision, Moment, adaptive, make_schedule
from geoquant.training.adaptive import AdaptivePrecision
from geoquant.training.measuring import MeasuredNoise
from geoquant.training.numerics import level, step_share
from geoquant.training.schedules import Combined, CurvatureOnly, Cyclic, GradientOnly, NumGeom, Seed18, Sound
from geoquant.training.schedules.numgeom import greedy_levels
from training_nets import conv_net, optimizer_of, trained
from training_schedule_contract import ScheduleContract

CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "uniform": {},
    "seed-amp": {},
    "amp": {},
    "cpt": {"cycles": 3},
    "seed18": {"curvature_every": 2},
    "combined": {"every": 3},
    "curvature": {"every": 3},
    "gradient": {"every": 3},
    "sound": {"every": 3},
    "numgeom": {"every": 3},
}


def test_every_schedule_is_under_contract():
    assert set(CASES) == set(SCHEDULES.names())


@pytest.mark.parametrize("schedule", [make_schedule(n, **o) for n, o in CASES.items()], ids=list(CASES))
class TestContract(ScheduleContract):
    pass


def facts(gradient: float = 1.0, curvature: float = 1.0, **more: Any) -> LayerFacts:
    return LayerFacts(100, 1e6, gradient, 4.0, 1.0, curvature, **more)


def moment(layers: dict[str, LayerFacts], **more: Any) -> Moment:
    now = {name: LayerPrecision.of("int8") for name in layers}
    return Moment(10, 0.1, 5, 100, now, layers, **{"initial": layers, **more})


def bits(schedule: Any, at: Moment) -> dict[str, int]:
    return {name: proposal.precision.bits("forward") for name, proposal in schedule.propose(at).items()}


def test_the_seeds_rule_by_hand():
    at = moment({"a": facts(gradient=2.0, curvature=4.0), "b": facts(gradient=2.0**-9, curvature=4.0)})
    found = Seed18(levels=FINE).propose(at)
    # log2(4·4/2) + 4 = 7, and log2(16·512) + 4 = 17; the optimizer takes the largest.
    assert (found["a"].precision.weights, found["b"].precision.weights) == ("int7", "fp32")
    assert found["a"].precision.state == "fp32"
    assert Seed18().propose(at)["a"].precision.weights == "int8"
    assert bits(Seed18(levels=FINE, target=2.0**-2), at)["a"] == 5
    # ‖g‖ so small that log2(L_T/‖g‖) = log2(1.4·2^9) rules: 10 bits.
    small = moment({"a": facts(gradient=2.0**-9, curvature=1e-9), "b": facts(gradient=1e-9, curvature=4.0)})
    assert bits(Seed18(levels=FINE), small)["a"] == 16


def test_the_seeds_warm_up_and_epochs():
    schedule = Seed18(curvature_every=2)
    kinds = {step: schedule.agenda(step, 5) for step in range(1, 26)}
    assert {step for step, what in kinds.items() if "decide" in what} == {5, 10, 15, 20, 25}
    assert {step for step, what in kinds.items() if "curvature" in what} == {5, 15, 25}
    _, run = trained(schedule, steps_per_epoch=3, batches=None)
    assert {c.after.weights for c in run.log.changes if c.step < 3} == {"fp32"}
    assert any(c.after.weights != "fp32" for c in run.log.changes)


def test_the_parts_listen_to_what_they_say():
    base, quiet = facts(), facts(gradient=0.25)
    sharp = facts(curvature=16.0)
    for schedule, hears_gradient, hears_curvature in (
        (GradientOnly(levels=FINE), True, False),
        (CurvatureOnly(levels=FINE), False, True),
        (Combined(levels=FINE, margin=2), True, True),
    ):
        at = {name: bits(schedule, moment({"a": now}, initial={"a": base}))["a"] for name, now in
              {"base": base, "quiet": quiet, "sharp": sharp}.items()}  # fmt: skip
        assert (at["quiet"] > at["base"]) is hears_gradient
        assert (at["sharp"] > at["base"]) is hears_curvature


def test_cpt_is_its_formula():
    schedule = Cyclic(cycles=4)
    for step in range(40):
        wanted = round(3 + 2.5 * (1 - math.cos(math.pi * (step % 10) / 10)))
        at = replace(moment({"a": facts()}), step=step, total_steps=40)
        assert bits(schedule, at)["a"] == wanted
        assert schedule.propose(at)["a"].precision.gradients == "int8"
    assert bits(replace(schedule, levels=COARSE), replace(moment({"a": facts()}), step=0))["a"] == 4


def two_blocks(coupling: float) -> tuple[tuple[float, float], tuple[float, float]]:
    return ((1.0, coupling), (coupling, 1.0))


def test_on_the_two_block_quadratic_the_layerwise_rule_fails_and_the_coupled_one_holds():
    """½θᵀHθ at θ = (1, −1): with coupling 0.9 the gradients are 0.1, and errors of both blocks add up."""
    for coupling, naive_is_enough in ((0.0, True), (0.9, False)):
        hessian = np.array(two_blocks(coupling))
        theta = np.array([1.0, -1.0])
        gradient = np.abs(hessian @ theta)
        # One weight a layer, a span at which 4 bits err by 0.09; naive: the diagonal only.
        layers = {n: LayerFacts(1, 1.0, float(g), 1.0, 2.88, 1.0) for n, g in zip("ab", gradient, strict=True)}
        naive = bits(Sound(least=1, levels=FINE), moment(layers, coupling=two_blocks(0.0)))
        coupled = bits(Sound(least=1, levels=FINE), moment(layers, coupling=two_blocks(coupling)))

        def worst(widths: dict[str, int], hessian: Any = hessian, theta: Any = theta) -> bool:
            """Whether some rounding errors of these widths make a step of 1/L go up."""
            sizes = [2.88 / 2 ** (widths[name] + 1) for name in "ab"]
            rate = 1 / np.linalg.norm(hessian, 2)
            for signs in itertools.product((-1, 1), repeat=2):
                after = theta - rate * hessian @ (theta + np.array(signs) * sizes)
                if after @ hessian @ after >= theta @ hessian @ theta:
                    return True
            return False

        assert worst(naive) is not naive_is_enough
        assert not worst(coupled)
        errors = [2.88 / 2 ** (coupled[name] + 1) for name in "ab"]
        assert all(coupled_rule(two_blocks(coupling), gradient, errors))


def test_the_dead_zone_sets_the_width_of_stored_weights():
    at = moment({"a": facts(gradient=0.5)}, coupling=((1.0,),))
    found = Sound(keep=True, levels=FINE).propose(at)["a"].precision
    # An update of 0.1·0.5/√100 = 0.005 has to exceed half a gap: 1/2^b < 0.01, b ≥ 6.64.
    assert found.stored == "int7"
    assert Sound(levels=FINE).propose(at)["a"].precision.stored == "fp32"


MENU = ("int3", "int4", "int6", "int8")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_greedy_levels_keep_within_the_noise_and_are_near_the_best(seed: int):
    rng = np.random.default_rng(seed)
    names = [f"l{i}" for i in range(4)]
    noise = dict(zip(names, np.exp(rng.normal(0, 2, 4)), strict=True))
    flops = dict(zip(names, np.exp(rng.normal(0, 2, 4)), strict=True))
    allowed = float(rng.uniform(0.001, 0.2)) * sum(noise.values())

    def noisy(levels: Any) -> float:
        return sum(noise[n] * step_share(name) ** 2 for n, name in zip(names, levels, strict=True))

    def cost(levels: Any) -> float:
        return sum(flops[n] * level(name).bits for n, name in zip(names, levels, strict=True))

    found = list(greedy_levels(noise, flops, allowed, MENU).values())
    within = [levels for levels in itertools.product(MENU, repeat=4) if noisy(levels) <= allowed]
    if not within:
        assert found == ["int8"] * 4
        return
    assert noisy(found) <= allowed
    assert cost(found) <= 1.35 * min(map(cost, within))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_answers_to_more_noise_never_take_bits_from_a_layer(seed: int):
    rng = np.random.default_rng(seed)
    noise, flops = (dict(enumerate(each)) for each in np.exp(rng.normal(0, 2, (2, 5))))
    plans = [greedy_levels(noise, flops, allowed, MENU) for allowed in (3.0, 1.0, 0.3, 0.1, 0.03)]
    for few, many in itertools.pairwise(plans):
        assert all(level(few[layer]).bits <= level(many[layer]).bits for layer in few)


@pytest.mark.parametrize(("noise", "allowed"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0)])
def test_what_cannot_be_weighed_gets_the_most_bits(noise: float, allowed: float):
    assert greedy_levels({"a": noise, "b": 1.0}, {"a": 1.0, "b": 1.0}, allowed, MENU) == {"a": "int8", "b": "int8"}


def two_layers(**more: float) -> dict[str, LayerFacts]:
    """Return layers a and b whose rounding disturbs their own gradients alone."""
    rows = {"a": (1.0, 0.0), "b": (0.0, 1.0)}
    return {
        name: LayerFacts(100, more.get(f"flops_{name}", 1e6), 1.0, 1.0, 1.0, more.get(f"curvature_{name}", 1.0),
                         more.get(f"share_{name}", 1.0), tuple(more.get(f"noise_{name}", 1.0) * x for x in row))
        for name, row in rows.items()
    }  # fmt: skip


def test_numgeom_gives_more_bits_to_noise_and_few_operations():
    def at(**more: float) -> dict[str, int]:
        return bits(NumGeom(share=0.2), moment(two_layers(**more)))

    even = at()
    assert even["a"] == even["b"]
    assert at(noise_a=30.0)["a"] > even["a"]
    assert at(flops_a=1e3)["a"] > at(flops_a=1e3)["b"]
    assert at(curvature_a=100.0) == even


def test_numgeom_takes_every_layer_by_its_own_gradient_and_the_curved_one_by_its_curvature():
    """Scaling a ReLU network's layer up and the next one down changes gradients, errors and κ, and no function."""
    facts = two_layers(noise_a=4.0, share_a=0.8, share_b=0.6)
    scaled = two_layers(noise_a=4.0 * 9, share_a=0.8 * 3, curvature_a=9.0, share_b=0.6 / 3, noise_b=1 / 9)
    own, curved = NumGeom(share=0.1), NumGeom(share=0.1, curved=True)
    assert bits(own, moment(facts)) == bits(own, moment(scaled))
    assert bits(curved, moment(facts)) != bits(curved, moment(scaled))
    sharp = bits(curved, moment(two_layers(curvature_a=100.0)))
    assert sharp["a"] > sharp["b"]
    assert curved.needs == {"noise", "curvature"}
    assert NumGeom().needs == {"noise"}


def test_a_layer_without_a_gradient_does_not_ask_for_bits():
    dead = two_layers(share_a=0.0, noise_a=0.0)
    assert bits(NumGeom(), moment(dead))["a"] == NumGeom().least


def test_numgeom_raises_bits_with_the_relative_noise():
    def at(noise: float) -> int:
        layer = LayerFacts(100, 1e6, 1.0, 1.0, 1.0, 1.0, 1.0, (noise,))
        return bits(NumGeom(), moment({"a": layer}))["a"]

    widths = [at(noise) for noise in (0.5, 2.0, 20.0, 200.0)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_noise_is_compared_with_the_gradient_of_its_own_time():
    """Layers take turns at being measured; a gradient that shrinks a hundredfold meanwhile must not look noisy."""
    run, rows, together = measured_run()
    before = run.moment().layers
    for turn in range(30):  # everything is 10⁻² of what it was, errors (squared) 10⁻⁴
        row = [1e-4 * value for value in rows[turn % 3]]
        run._facts.set_noise(MeasuredNoise([1e-2] * 3, {turn % 3: row}, [1e-4 * each for each in together]))
    for name, facts in run.moment().layers.items():
        assert facts.noise == pytest.approx(before[name].noise)
        assert facts.gradient_share == pytest.approx(3**-0.5)


def test_what_all_layers_do_together_levels_what_was_measured_long_ago():
    run, _, together = measured_run()
    before = run.moment().layers
    for _ in range(20):  # only the first layer is looked at, but all gradients get a hundred times as noisy
        run._facts.set_noise(MeasuredNoise([1.0] * 3, {0: [100.0, 0.0, 0.0]}, [100 * each for each in together]))
    for name, facts in run.moment().layers.items():
        assert facts.noise == pytest.approx([100 * each for each in before[name].noise], rel=0.01)


def measured_run() -> tuple[AdaptivePrecision, dict[int, list[float]], list[float]]:
    """Return a run with a first measurement, each layer disturbing itself, and what that was."""
    model = conv_net()
    run = adaptive(model, optimizer_of(model), "numgeom")
    run._facts.see(torch.ones(3))
    rows = {0: [1.0, 0.0, 0.0], 1: [0.0, 1.0, 0.0], 2: [0.0, 0.0, 1.0]}
    together = [step_share(precision.weights) ** 2 for precision in run.assignment.values()]
    run._facts.set_noise(MeasuredNoise([1.0, 1.0, 1.0], rows, together))
    return run, rows, together


def test_names_and_options_are_checked():
    with pytest.raises(UnknownNameError, match="numgeom"):
        make_schedule("numgem")
    with pytest.raises(GeoquantError, match="cannot be made"):
        make_schedule("numgeom", shares=2)
    assert make_schedule("uniform:int4/int6").precision == LayerPrecision.of("int4", "int6")
