"""What the commands hand to the searches."""

from __future__ import annotations

import torch

from geoquant.cli.searching import at_the_budget
from geoquant.models import get_weight, take_inventory
from geoquant.plan import Budget, uniform_plan
from geoquant.quantize import quantize
from geoquant.sensitivity import SampledPlans, make_subject
from nets import small_batches, small_net

RECIPE = {"effort": "balanced", "rounding": None, "norms": None, "refine": None, "seed": 0, "transforms": ()}


def test_sampled_plans_get_the_budget_and_the_pipeline_that_deploys() -> None:
    model, batches = small_net(), small_batches(2)
    name, mine = at_the_budget(model, ("weight_error", "sampled_plans"), Budget(average_bits=3.3), batches, RECIPE)
    assert name == "weight_error"
    assert isinstance(mine, SampledPlans)
    assert mine.average_bits == 3.3
    assert mine.deploy is not None
    subject = make_subject(model, batches, grids=["int3"])
    deployed = mine.deploy(subject.grids * len(subject.sites))
    expected = quantize(model, uniform_plan(model, "int3"), batches, effort="balanced", seed=0)
    for site in take_inventory(model).sites:
        assert torch.equal(get_weight(deployed, site), get_weight(expected, site))


def test_without_a_budget_in_bits_predictors_stay_names() -> None:
    names = ("sampled_plans",)
    assert at_the_budget(small_net(), names, None, small_batches(), RECIPE) == names
    assert at_the_budget(small_net(), names, Budget(bytes=9000), small_batches(), RECIPE) == names
