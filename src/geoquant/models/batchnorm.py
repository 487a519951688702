"""Which batch norms can be absorbed into the layer before them, and what is that layer then?

In eval mode a batch norm is the affine map y = γ(x − μ)/√(σ² + ε) + β per channel, so a convolution or
linear layer before it takes it up exactly: W ← W·γ/√(σ² + ε), b ← (b − μ)·γ/√(σ² + ε) + β. The norm becomes
an identity. Folding fixes the statistics: do it on models that are to be deployed, not trained on.

A pair is folded only when the norm is the sole reader of the layer's output. That is read off the graph of
`torch.fx`; models that cannot be traced are watched on one example instead, which proves it for the path
that the example takes. A Linear before BatchNorm1d is taken to give (batch, features).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoquant.errors import ModelError
from geoquant.models import views
from geoquant.models.calling import Forward, evaluating
from geoquant.models.observation import observe
from geoquant.models.sites import layer_type

Pair = tuple[str, str]

_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_RECORD = "_geoquant_folds"


def fold_batch_norm_(model: nn.Module, example: Any = None, forward: Forward | None = None) -> tuple[Pair, ...]:
    """Fold batch norms of `model` into the layers before them, in place.

    Args:
        model: its function in eval mode stays the same, up to rounding.
        example: a batch, needed only where the model cannot be traced symbolically.
        forward: how to call the model on the example, where the usual ways do not fit.

    Returns:
        (layer, batch norm) names of the folded pairs; norms that could not be folded stay as they are.

    Raises:
        ModelError: the model cannot be traced and there is no example.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, eps=0)).eval()
    >>> _ = model[0].weight.data.fill_(3.0), model[1].running_var.fill_(4.0), model[1].running_mean.fill_(1.0)
    >>> fold_batch_norm_(model), model[0].weight.item(), model[0].bias.item()
    ((('0', '1'),), 1.5, -0.5)
    """
    pairs = _find_pairs(model, example, forward)
    for layer, norm in pairs:
        _absorb_(model.get_submodule(layer), model.get_submodule(norm))
    return apply_folds_(model, pairs)


def fold_batch_norm(model: nn.Module, example: Any = None, forward: Forward | None = None) -> nn.Module:
    """Return a copy of `model` with its batch norms folded (`fold_batch_norm_`); the pairs: `folded_pairs`."""
    copied = copy.deepcopy(model)
    fold_batch_norm_(copied, example, forward)
    return copied


def apply_folds_(model: nn.Module, pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Give a fresh model the structure of a folded one: a bias at each layer, an identity for each norm.

    The weights are not touched: they are loaded afterwards.

    Raises:
        ModelError: a name is not of a layer that can fold, or of a batch norm of its size.
    """
    pairs = tuple((layer, norm) for layer, norm in pairs)
    for layer, norm in pairs:
        if not _fits(_submodule(model, layer), _submodule(model, norm)):
            raise ModelError(f"cannot fold '{norm}' into '{layer}': expected a layer and a batch norm of its size")
    for layer, norm in pairs:
        _give_bias_(model.get_submodule(layer))
        _replace_(model, norm)
    model.__dict__[_RECORD] = (*folded_pairs(model), *pairs)
    return pairs


def folded_pairs(model: nn.Module) -> tuple[Pair, ...]:
    """Return the (layer, batch norm) pairs that geoquant has folded in `model` so far.

    >>> folded_pairs(nn.Linear(1, 1))
    ()
    """
    return tuple(model.__dict__.get(_RECORD, ()))


def _find_pairs(model: nn.Module, example: Any, forward: Forward | None) -> tuple[Pair, ...]:
    if not any(isinstance(module, _NORMS) for module in model.modules()):
        return ()
    graph = symbolic_graph(model)
    if graph is not None:
        candidates = list(_traced_pairs(model, graph))
    elif example is not None:
        with evaluating(model):
            candidates = list(_observed_pairs(model, example, forward))
    else:
        raise ModelError(
            f"cannot trace {type(model).__name__} to see what reads which output; "
            "pass example=, a batch that the model takes"
        )
    return tuple(pair for pair in candidates if _may_fold(model, *pair))


def symbolic_graph(model: nn.Module) -> fx.Graph | None:
    """Return the graph of the model, or None; tracing runs the caller's code on stand-ins, so it may raise anything."""
    try:
        with evaluating(model):
            return fx.Tracer().trace(model)
    except Exception:
        return None


def _traced_pairs(model: nn.Module, graph: fx.Graph) -> Iterator[Pair]:
    calls = Counter(model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        names = str(source.target), str(node.target)
        if all(calls[model.get_submodule(name)] == 1 for name in names):
            yield names


def _observed_pairs(model: nn.Module, example: Any, forward: Forward | None) -> Iterator[Pair]:
    """Yield pairs where nothing but the norm touched the memory of the layer's output, nor returned it later."""
    seen = observe(model, example, forward)
    names = {module: name for name, module in model.named_modules()}
    calls = Counter(call.module for call in seen.calls)
    for index, call in enumerate(seen.calls):
        if not isinstance(call.module, _LAYERS) or len(call.outputs) != 1 or not call.replayable:
            continue
        (memory,) = call.outputs
        readers = seen.touched_by.get(memory, set()) - {index}
        reader = seen.calls[min(readers)] if len(readers) == 1 and min(readers) >= 0 else None
        if reader is None or calls[call.module] != 1 or calls[reader.module] != 1:
            continue
        if not any(memory in other.outputs and other.end > reader.start for other in seen.calls):
            yield names[call.module], names[reader.module]


def _may_fold(model: nn.Module, layer_name: str, norm_name: str) -> bool:
    """Whether both modules are plain, fit, and belong to nobody else."""
    layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
    if not _fits(layer, norm) or norm.running_mean is None or norm.running_var is None:
        return False
    modules = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    parameters = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    own = [*layer.parameters(), *norm.parameters()]
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (layer, norm))
    alone = modules[layer] == modules[norm] == 1 and all(parameters[id(parameter)] == 1 for parameter in own)
    return alone and not hooked


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether `layer` and `norm` are of the types that fold (subclasses with a forward of their own are not)."""
    if not _is_plain(layer, _LAYERS) or not _is_plain(norm, _NORMS) or "weight" not in layer._parameters:
        return False
    return _channels(layer) == norm.num_features


def _is_plain(module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    return any(isinstance(module, cls) and type(module).forward is cls.forward for cls in types)


def _view(layer: nn.Module) -> str:
    found = layer_type(layer)
    return views.ROWS if found is None else found.view(layer)


def _channels(layer: nn.Module) -> int:
    return views.matrix_shape(_view(layer), tuple(_tensor(layer, "weight").shape))[0]


def _tensor(module: nn.Module, name: str) -> Tensor:
    tensor = getattr(module, name)
    assert isinstance(tensor, Tensor)
    return tensor


def _absorb_(layer: nn.Module, norm: nn.Module) -> None:
    """Rescale `layer` so that it gives what `norm` gave after it; the arithmetic is in float64."""
    assert isinstance(norm, _BatchNorm)
    mean, variance = _tensor(norm, "running_mean").double(), _tensor(norm, "running_var").double()
    scale = (variance + norm.eps).rsqrt()
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale, shift = scale * norm.weight.detach().double(), norm.bias.detach().double()
    _give_bias_(layer)
    weight, bias, view = _tensor(layer, "weight"), _tensor(layer, "bias"), _view(layer)
    with torch.no_grad():
        matrix = views.to_matrix(view, weight.double()) * scale[:, None]
        weight.copy_(views.from_matrix(view, matrix, tuple(weight.shape)))
        bias.copy_((bias.double() - mean) * scale + shift)


def _give_bias_(layer: nn.Module) -> None:
    if layer._parameters.get("bias") is None:
        weight = _tensor(layer, "weight")
        bias = torch.zeros(_channels(layer), dtype=weight.dtype, device=weight.device)
        layer.register_parameter("bias", nn.Parameter(bias, requires_grad=weight.requires_grad))


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"this model has no layer '{name}', which the folded model has") from error


def _replace_(model: nn.Module, name: str) -> None:
    """Put an identity where the norm was."""
    parent, _, leaf = name.rpartition(".")
    identity = nn.Identity()
    identity.training = model.get_submodule(name).training
    model.get_submodule(parent)._modules[leaf] = identity
