"""Which grid goes where: budgets, plans, and how a profile becomes a plan."""

from geoquant.plan.activations import SCALES, ZEROS, Activations, Entries, activation_entries, activation_wishes
from geoquant.plan.budget import Budget
from geoquant.plan.cheapest import CheapestPlan, allocate_cheapest
from geoquant.plan.engines import CONFIGURATIONS
from geoquant.plan.latency import LatencyTable
from geoquant.plan.layout import (
    ARTIFACT_VERSION,
    METADATA_KEY,
    Entry,
    activation_tensors,
    artifact_bytes,
    description,
    entries,
    file_bytes,
    metadata,
    site_entries,
)
from geoquant.plan.plan import Evidence, Optimality, Plan, Request, uniform_plan
from geoquant.plan.solving import allocate, resolve
from geoquant.plan.text import align, diff_rows, diff_text, plan_text, summary

__all__ = [
    "ARTIFACT_VERSION",
    "CONFIGURATIONS",
    "METADATA_KEY",
    "SCALES",
    "ZEROS",
    "Activations",
    "Budget",
    "CheapestPlan",
    "Entries",
    "Entry",
    "Evidence",
    "LatencyTable",
    "Optimality",
    "Plan",
    "Request",
    "activation_entries",
    "activation_tensors",
    "activation_wishes",
    "align",
    "allocate",
    "allocate_cheapest",
    "artifact_bytes",
    "description",
    "diff_rows",
    "diff_text",
    "entries",
    "file_bytes",
    "metadata",
    "plan_text",
    "resolve",
    "site_entries",
    "summary",
    "uniform_plan",
]
