"""How is a layer written so that its outputs, or its inputs, come multiplied by a factor per channel?

Layers are linear ones (with transformers' Conv1D), convolutions, batch norms, and norms with a weight per channel; of
these some multiply by the weight and some by 1 + weight, which is found by trying. All arithmetic is in float64 and
rounded once to the parameter's own dtype.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from geoquant.geometry.factors import TRANSPOSED, is_known
from geoquant.models.sites import layer_type
from geoquant.transforms.recording import is_norm

_FORWARDS = (nn.LayerNorm.forward, nn.RMSNorm.forward, _BatchNorm.forward, nn.SyncBatchNorm.forward)
_PROBES = 3


def is_layer(module: nn.Module) -> bool:
    """Whether the rows and columns of `module` can be scaled: linear layers and convolutions that are not transposed.

    Subclasses with a forward of their own are not known.

    >>> is_layer(nn.Conv2d(1, 1, 1)), is_layer(nn.ConvTranspose2d(1, 1, 1)), is_layer(nn.Embedding(1, 1))
    (True, False, False)
    """
    return is_known(module) and not isinstance(module, (nn.Embedding, *TRANSPOSED))


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own parameters by their short names."""
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}


def norm_offset(norm: nn.Module) -> float | None:
    """Return c where `norm` multiplies by c + weight and adds its bias; None where it does neither.

    >>> norm_offset(nn.LayerNorm(3)), norm_offset(nn.LayerNorm(3, elementwise_affine=False)), norm_offset(nn.ReLU())
    (0.0, None, None)
    """
    own = parameters_of(norm)
    if not is_norm(norm) or "weight" not in own or not set(own) <= {"weight", "bias"} or own["weight"].dim() != 1:
        return None
    if type(norm).forward in _FORWARDS:
        return 0.0
    weight = own["weight"]
    x = torch.randn(_PROBES, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    fixed = {name: torch.zeros_like(parameter) for name, parameter in own.items()}

    def answer(scale: float) -> Tensor:
        with torch.no_grad():
            changed = {**fixed, "weight": torch.full_like(weight, scale)}
            return torch.as_tensor(torch.func.functional_call(norm, changed, (x,))).double()

    try:
        at_zero, at_one, at_three = answer(0.0), answer(1.0), answer(3.0)
    except Exception:  # a norm that takes more than one tensor, or another shape
        return None
    slope = at_one - at_zero
    if at_one.shape != x.shape or not _close(at_three, at_zero + 3 * slope) or float(slope.abs().max()) == 0:
        return None
    return next((offset for offset in (0.0, 1.0) if _close(at_zero, offset * slope)), None)


def norm_scale(norm: nn.Module, offset: float) -> Tensor:
    """Return what `norm` multiplies each channel by, float64."""
    return offset + parameters_of(norm)["weight"].detach().double()


def scale_outputs_(module: nn.Module, factor: Tensor) -> None:
    """Multiply every output channel of a layer or norm by `factor` (channels,)."""
    own = parameters_of(module)
    if is_layer(module):
        set_(own["weight"], own["weight"].double() * output_factor(module, factor))
    else:
        offset = norm_offset(module)
        assert offset is not None
        set_(own["weight"], norm_scale(module, offset) * factor.to(own["weight"].device) - offset)
    if "bias" in own:
        set_(own["bias"], own["bias"].double() * factor.to(own["bias"].device))


def scale_inputs_(module: nn.Module, factor: Tensor) -> None:
    """Rewrite a layer for inputs that come divided by `factor` (inputs,): multiply the columns."""
    weight = parameters_of(module)["weight"]
    set_(weight, weight.double() * input_factor(module, factor))


def input_factor(module: nn.Module, factor: Tensor) -> Tensor:
    """Spread `factor` (inputs,) over the weight of a layer."""
    weight = parameters_of(module)["weight"]
    factor = factor.to(weight.device)
    if not isinstance(module, _ConvNd):
        return factor[:, None] if _is_transposed(module) else factor
    groups = factor.view(module.groups, 1, -1).expand(-1, weight.shape[0] // module.groups, -1)
    return groups.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))


def column_reach(module: nn.Module) -> Tensor:
    """Return the largest |weight| that multiplies each input of a layer, (inputs,) float64."""
    weight = parameters_of(module)["weight"].detach().double().abs()
    if not isinstance(module, _ConvNd):
        return weight.amax(1 if _is_transposed(module) else 0)
    return weight.flatten(2).amax(2).view(module.groups, -1, weight.shape[1]).amax(1).flatten()


def output_factor(module: nn.Module, factor: Tensor) -> Tensor:
    """Spread `factor` (channels,) over the weight of a layer."""
    weight = parameters_of(module)["weight"]
    factor = factor.to(weight.device)
    return factor if _is_transposed(module) else factor.view(-1, *[1] * (weight.dim() - 1))


def column_energy(module: nn.Module) -> Tensor:
    """Return the sum of squares of the weights that multiply each input of a layer, (inputs,) float64."""
    weight = parameters_of(module)["weight"].detach().double().square()
    if not isinstance(module, _ConvNd):
        return weight.sum(1 if _is_transposed(module) else 0)
    return weight.flatten(2).sum(2).view(module.groups, -1, weight.shape[1]).sum(1).flatten()


def row_reach(module: nn.Module) -> Tensor:
    """Return the largest |weight| of each output channel of a layer, (channels,) float64."""
    weight = parameters_of(module)["weight"].detach().double().abs()
    return weight.amax(0) if _is_transposed(module) else weight.flatten(1).amax(1)


def inputs_of(module: nn.Module) -> int:
    """Return how many input channels a layer has."""
    weight = parameters_of(module)["weight"]
    if isinstance(module, _ConvNd):
        return weight.shape[1] * module.groups
    return weight.shape[0 if _is_transposed(module) else 1]


def outputs_of(module: nn.Module) -> int:
    """Return how many output channels a layer has."""
    return parameters_of(module)["weight"].shape[1 if _is_transposed(module) else 0]


def add_to_bias_(module: nn.Module, inputs: Tensor) -> None:
    """Add to the bias of a linear layer what it makes of the constant `inputs` (inputs,)."""
    own = parameters_of(module)
    weight = own["weight"].detach().double()
    matrix = weight.T if _is_transposed(module) else weight
    set_(own["bias"], own["bias"].double() + matrix @ inputs.to(matrix))


def rotate_outputs_(module: nn.Module, rotation: Tensor) -> None:
    """Make a linear layer or an embedding give x Q instead of x; `rotation` Q is (channels, channels)."""
    own = parameters_of(module)
    weight = own["weight"]
    q = rotation.to(weight.device)
    stored_by_rows = isinstance(module, nn.Embedding) or _is_transposed(module)
    set_(weight, weight.double() @ q if stored_by_rows else q.T @ weight.double())
    if "bias" in own:
        set_(own["bias"], own["bias"].double() @ q)


def rotate_inputs_(module: nn.Module, rotation: Tensor) -> None:
    """Rewrite a linear layer for inputs x Q instead of x."""
    weight = parameters_of(module)["weight"]
    q = rotation.to(weight.device)
    set_(weight, q.T @ weight.double() if _is_transposed(module) else weight.double() @ q)


def obstacles(model: nn.Module) -> dict[nn.Module, str]:
    """Say, for each layer and norm whose parameters are not its own alone, why it cannot be rewritten."""
    uses = Counter(_place(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found = {}
    for module in model.modules():
        own = parameters_of(module).values()
        if any(uses[_place(each)] > 1 for each in own):
            found[module] = "its weight is tied to another"
        elif module._forward_hooks or module._forward_pre_hooks:
            found[module] = "it carries hooks"
        elif hasattr(module, "parametrizations"):
            found[module] = "its weight is computed from other parameters"
    return found


def set_(parameter: nn.Parameter, value: Tensor) -> None:
    """Write `value` into a parameter, rounded to its own dtype."""
    with torch.inference_mode() if parameter.is_inference() else torch.no_grad():
        parameter.copy_(value)


def _place(parameter: Tensor) -> tuple[int, int]:
    if nn.parameter.is_lazy(parameter) or parameter.numel() == 0:
        return id(parameter), 0
    return parameter.untyped_storage()._cdata, int(parameter.storage_offset())


def _is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored as (inputs, outputs)."""
    found = layer_type(module)
    return found is not None and found.view(module) == "columns"


def _close(found: Tensor, wanted: Tensor) -> bool:
    return bool(torch.allclose(found, wanted, rtol=1e-2, atol=1e-2 * max(1e-6, float(wanted.abs().max()))))
