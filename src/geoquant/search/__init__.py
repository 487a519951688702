"""Plans that were tried: the smallest model within a drop, with a certificate, and refinement by real evaluations."""

from geoquant.search.refining import Evaluated, Refined, refine
from geoquant.search.samples import Deploy, Metric, pipeline
from geoquant.search.within import Trial, Within, allocate_within

__all__ = [
    "Deploy",
    "Evaluated",
    "Metric",
    "Refined",
    "Trial",
    "Within",
    "allocate_within",
    "pipeline",
    "refine",
]
