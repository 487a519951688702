"""How is an arbitrary model called on a batch, and where in its answer are the logits?

A batch is a tensor, an (inputs, targets) pair, or a mapping of keyword arguments; the inputs of a pair may
again be a tensor, a tuple (positional arguments) or a mapping (keyword arguments). Whatever does not fit
is served by the caller's own ``forward(model, batch) -> logits``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import DataError, ModelError

Forward = Callable[[nn.Module, Any], Tensor]

TARGET_KEYS = ("labels", "label", "targets")
_CAUSAL_MODELS = ("ForCausalLM", "LMHeadModel")
_BATCH_FORMS = "a tensor, an (inputs, targets) pair or a mapping of keyword arguments"


def predict(model: nn.Module, batch: Any, forward: Forward | None = None) -> Tensor:
    """Call `model` on `batch` and return its logits (..., classes).

    Args:
        model: called in whatever mode it is in (see `inference`).
        batch: a tensor, an (inputs, targets) pair, or a mapping of keyword arguments.
        forward: called as ``forward(model, batch)`` instead of the usual ways; may return any output in
            which logits can be found.

    Raises:
        ModelError: the model does not take these arguments, or its output holds no logits.
        DataError: the batch is none of the known forms.

    >>> model = nn.Linear(2, 3)
    >>> predict(model, (torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))).shape
    torch.Size([4, 3])
    """
    if forward is not None:
        return logits_of(forward(model, batch))
    inputs = inputs_of(batch)
    if isinstance(inputs, Mapping):
        arguments = _accepted(model, inputs)
        _check_call(model, (), arguments)
        return logits_of(model(**arguments))
    positional = inputs if isinstance(inputs, tuple) else (inputs,)
    _check_call(model, positional, {})
    return logits_of(model(*positional))


def logits_of(output: Any) -> Tensor:
    """Find the logits in a model's output: a tensor, ``.logits``, ``["logits"]``, the first of a tuple.

    Tensors without axes (losses) are passed over in tuples.

    >>> logits_of((torch.tensor(0.7), torch.zeros(2, 5))).shape
    torch.Size([2, 5])
    """
    candidate = output
    if isinstance(output, Mapping):
        candidate = output.get("logits")
    elif isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        candidate = next((part for part in output if isinstance(part, Tensor) and part.dim() > 0), None)
    elif not isinstance(output, Tensor):
        candidate = getattr(output, "logits", None)
    if not isinstance(candidate, Tensor) or candidate.dim() == 0:
        raise ModelError(
            f"no logits in the model's output ({_describe(output)}); expected a tensor (..., classes), "
            "an output with 'logits', or a tuple; otherwise pass forward=, a function of (model, batch)"
        )
    return candidate


def targets_of(batch: Any, model: nn.Module | None = None) -> Tensor | None:
    """Return the targets of a batch, or None where it has none.

    Hugging Face's causal language models are given labels that stand at their own tokens and shift them
    inside. With such a `model`, the targets come back beside the logits that predict them: moved one token
    to the left, with -100 (not scored) at the end.

    >>> targets_of({"input_ids": torch.zeros(1, 2), "labels": torch.tensor([1])})
    tensor([1])
    """
    if _is_pair(batch):
        return batch[1] if isinstance(batch[1], Tensor) else None
    if not isinstance(batch, Mapping):
        return None
    found = next((batch[key] for key in TARGET_KEYS if batch.get(key) is not None), None)
    if not isinstance(found, Tensor):
        return None
    if model is None or found.dim() != 2 or not is_causal(model):
        return found
    return torch.nn.functional.pad(found[:, 1:], (0, 1), value=-100)


def is_causal(model: nn.Module) -> bool:
    """Whether `model` is a causal language model of transformers, whose labels stand at their own tokens.

    >>> is_causal(nn.Linear(1, 1))
    False
    """
    return type(model).__name__.endswith(_CAUSAL_MODELS)


def prediction_mask(batch: Any, logits: Tensor) -> Tensor | None:
    """Return which positions of `logits` (batch, tokens, classes) are real, as bool (batch, tokens).

    None where the batch has no ``attention_mask``, or where the mask does not count predictions.

    >>> batch = {"attention_mask": torch.tensor([[1, 1, 0]])}
    >>> prediction_mask(batch, torch.zeros(1, 3, 7))
    tensor([[ True,  True, False]])
    """
    inputs = batch[0] if _is_pair(batch) else batch
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or logits.dim() != 3 or mask.shape != logits.shape[:2]:
        return None
    return mask.to(logits.device).bool()


def move(batch: Any, device: torch.device | str) -> Any:
    """Return `batch` with every tensor on `device`; mappings come back as plain dicts."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(part, device) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(move(part, device) for part in batch)
    return batch


def batch_size(batch: Any) -> int:
    """Return the number of samples: the first axis of the first tensor among the inputs.

    >>> batch_size((torch.zeros(4, 2), torch.zeros(4)))
    4
    """
    first = next((tensor for tensor in tensors_in(inputs_of(batch)) if tensor.dim() > 0), None)
    if first is None:
        raise DataError("cannot count the samples of a batch: none of its inputs is a tensor with an axis")
    return len(first)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode for a while; every submodule gets its own flag back afterwards.

    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    >>> with evaluating(model):
    ...     any(module.training for module in model.modules())
    False
    >>> [module.training for module in model.modules()]
    [True, True, False]
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluate `model` without autograd: `evaluating` and ``torch.inference_mode`` together."""
    with evaluating(model), torch.inference_mode():
        yield


def check_finite(model: nn.Module) -> None:
    """Raise `ModelError` when a parameter holds NaN or Inf, or a stored buffer holds NaN.

    Buffers may hold infinities on purpose (attention masks).

    >>> check_finite(nn.Linear(1, 1))
    """
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.is_meta:
            continue
        if bool(tensor.isnan().any()):
            raise ModelError(f"'{name}' holds NaN; mend or reload the weights before going on")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and bool(parameter.isinf().any()):
            raise ModelError(f"'{name}' holds Inf; mend or reload the weights before going on")


def inputs_of(batch: Any) -> Any:
    """Return what a model is called with: a tensor, a tuple of positional arguments, or a mapping of keywords.

    Raises:
        DataError: the batch is of no known form.

    >>> inputs_of((torch.tensor([1.0]), torch.tensor([0])))
    tensor([1.])
    """
    if isinstance(batch, (Tensor, Mapping)):
        return batch
    if _is_pair(batch):
        return batch[0]
    if isinstance(batch, (tuple, list)):
        raise DataError(f"a batch is a {type(batch).__name__} of {len(batch)} parts; expected {_BATCH_FORMS}")
    raise DataError(f"a batch is of type {type(batch).__name__}; expected {_BATCH_FORMS}")


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def _accepted(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out targets that the model's forward does not take."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {key: value for key, value in inputs.items() if takes_any or key in parameters or key not in TARGET_KEYS}


def _check_call(model: nn.Module, positional: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """Refuse arguments that the signature does not take, before Python does so less kindly."""
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        came = ", ".join(keywords) if keywords else f"{len(positional)} positional"
        raise ModelError(
            f"{type(model).__name__}.forward{signature} does not take this batch ({came}): {error}; "
            "change the batch, or pass forward=, a function of (model, batch)"
        ) from error


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of `value`, plain containers inside plain containers included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)


def _describe(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return f"a {kind} of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"{kind} with {', '.join(map(str, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {kind} of {', '.join(type(part).__name__ for part in output) or 'nothing'}"
    return kind
