"""geoquant decides, with evidence, how few bits each part of a neural network needs, and does the work.

import geoquant as gq

profile = gq.profile(model, calibration)                # what each (layer, grid) choice costs
plan = gq.allocate(profile, gq.Budget(average_bits=3))  # exact; scales and zero points counted
gq.quantize_(model, plan, calibration)                  # GPTQ on real inputs, norms corrected on the way
gq.recover_(model, plan, training_batches)              # where rounding lost too much: training on the grids
gq.save(model, plan, "model-w3")                        # bytes on disk = plan.bytes
model = gq.load("model-w3", fresh_model)                # logits bit-identical
"""

from geoquant.basin import Diagnosis, diagnose
from geoquant.errors import GeoquantError
from geoquant.evaluation import divergence, evaluate
from geoquant.export import load, save
from geoquant.grids import Grid
from geoquant.models import find_sites, fold_batch_norm, fold_batch_norm_
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.quantize import quantize_
from geoquant.recovery import recover_
from geoquant.search import allocate_within, refine
from geoquant.sensitivity import Profile, profile

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Diagnosis",
    "GeoquantError",
    "Grid",
    "Plan",
    "Profile",
    "allocate",
    "allocate_within",
    "diagnose",
    "divergence",
    "evaluate",
    "find_sites",
    "fold_batch_norm",
    "fold_batch_norm_",
    "load",
    "profile",
    "quantize_",
    "recover_",
    "refine",
    "save",
    "uniform_plan",
]
