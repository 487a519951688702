"""Experiments: small declarations that one command runs, resumes and reports."""

from geoquant.study import studies
from geoquant.study.declaration import PRESETS, STUDIES, Cell, Configuration, Preset, Study, register
from geoquant.study.gathering import begun, fullest, gather, results
from geoquant.study.results import Result, Results, Summary, summary
from geoquant.study.runner import RunReport, Watcher, holds, run_study
from geoquant.study.store import Failure, Outcome, Store

__all__ = [
    "PRESETS",
    "STUDIES",
    "Cell",
    "Configuration",
    "Failure",
    "Outcome",
    "Preset",
    "Result",
    "Results",
    "RunReport",
    "Store",
    "Study",
    "Summary",
    "Watcher",
    "begun",
    "fullest",
    "gather",
    "holds",
    "register",
    "results",
    "run_study",
    "studies",
    "summary",
]
