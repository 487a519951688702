"""How does a language model do on the tasks that people compare models by?

A thin way into EleutherAI's lm-evaluation-harness, where it is installed (extra ``lm-eval``): the model is handed over
as it is, quantized or not, and the harness's own figures come back. What a task downloads and how it scores is its
business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from geoquant.errors import DataError, MissingExtraError, ModelError
from geoquant.models import load_tokenizer, source_folder


def evaluate_tasks(
    model: nn.Module, tasks: Sequence[str], *, tokenizer: Any = None, limit: int | None = None, batch_size: int = 8
) -> dict[str, dict[str, float]]:
    """Run tasks of lm-evaluation-harness; return their figures by task and metric.

    Args:
        model: a causal language model of transformers.
        tasks: names, such as ``lambada_openai``.
        tokenizer: of the model; that of its folder by default.
        limit: examples per task; all when None.
        batch_size: requests at a time.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ModelError: the model came from no folder and no tokenizer is given.
        DataError: a task is unknown or cannot be loaded.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise MissingExtraError(
            "downstream tasks need EleutherAI's lm-evaluation-harness: pip install geoquant[lm-eval]"
        ) from error
    if tokenizer is None:
        folder = source_folder(model)
        if folder is None:
            raise ModelError(f"this {type(model).__name__} was loaded from no folder; pass its tokenizer")
        tokenizer = load_tokenizer(folder)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        found = simple_evaluate(model=wrapped, tasks=list(tasks), limit=limit)
    except (KeyError, OSError, ConnectionError, ValueError) as error:
        raise DataError(f"lm-eval cannot run {', '.join(tasks)}: {type(error).__name__}: {error}") from error
    return {task: _figures(scores) for task, scores in found["results"].items()}


def _figures(scores: dict[str, Any]) -> dict[str, float]:
    """Keep the numbers: metrics and their standard errors, not names."""
    return {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
