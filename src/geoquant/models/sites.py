"""Which weights of a model can be quantized, and under which names?

A site is one weight tensor that a grid may be chosen for. Layers are recognised by type; a weight that
several layers share (tied weights) is one site. Biases, norms and free parameters are no sites: they are
few, and stay in float. A layer type that is not known here can be registered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geoquant.errors import ModelError
from geoquant.models import views
from geoquant.models.selection import select


@dataclass(frozen=True)
class Site:
    """One quantizable weight of a model.

    Attributes:
        name: of the layer, such as ``layer1.0.conv1``.
        parameter: state-dict name of the weight, such as ``layer1.0.conv1.weight``.
        kind: of layer: linear, conv, conv_transpose, embedding, attention, or what was registered.
        shape: of the weight.
        view: how the weight is seen as a matrix (`geoquant.models.views`).
        aliases: other state-dict names of the same (tied) weight.

    >>> site = Site("up", "up.weight", "conv_transpose", (4, 5, 3), "transposed:2")
    >>> site.weights, site.matrix_shape
    (60, (10, 6))
    """

    name: str
    parameter: str
    kind: str
    shape: tuple[int, ...]
    view: str = views.ROWS
    aliases: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(channels, fan_in)."""
        return views.matrix_shape(self.view, self.shape)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return `weight` as (channels, fan_in), contiguous; it may share memory with `weight`."""
        self._check(weight)
        return views.to_matrix(self.view, weight)

    def restore(self, matrix: Tensor) -> Tensor:
        """Return the weight whose matrix (channels, fan_in) is `matrix`; exact inverse of `matrix`."""
        return views.from_matrix(self.view, matrix, self.shape)

    def _check(self, weight: Tensor) -> None:
        if tuple(weight.shape) != self.shape:
            raise ModelError(f"the weight of '{self.name}' is {self.shape}; a tensor {tuple(weight.shape)} came")


@dataclass(frozen=True)
class LayerType:
    """How weights sit in one type of layer."""

    kind: str
    parameters: tuple[str, ...]
    view: Callable[[nn.Module], str]


def _rows(_: nn.Module) -> str:
    return views.ROWS


def _columns(_: nn.Module) -> str:
    return views.COLUMNS


def _grouped(layer: nn.Module) -> str:
    return views.transposed(int(layer.groups))  # type: ignore[arg-type]


_MHA_PARAMETERS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

# Types of other packages are known by their full name, so that those packages need not be imported.
_LAYER_TYPES: dict[type[nn.Module] | str, LayerType] = {
    nn.Linear: LayerType("linear", ("weight",), _rows),
    nn.Embedding: LayerType("embedding", ("weight",), _rows),
    nn.EmbeddingBag: LayerType("embedding", ("weight",), _rows),
    nn.MultiheadAttention: LayerType("attention", _MHA_PARAMETERS, _rows),
    "transformers.pytorch_utils.Conv1D": LayerType("linear", ("weight",), _columns),
    **{conv: LayerType("conv", ("weight",), _rows) for conv in (nn.Conv1d, nn.Conv2d, nn.Conv3d)},
    **{
        conv: LayerType("conv_transpose", ("weight",), _grouped)
        for conv in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    },
}


def register_layer_type(
    layer: type[nn.Module],
    kind: str,
    parameters: tuple[str, ...] = ("weight",),
    view: str | Callable[[nn.Module], str] = views.ROWS,
) -> None:
    """Teach geoquant a layer type: which of its parameters are sites and which axis counts channels.

    Args:
        layer: the class; its subclasses are recognised too, unless they are registered themselves.
        kind: a word for tables and reports.
        parameters: attribute names of the weights; those that are None on a layer are passed over.
        view: ``rows``, ``columns``, ``stacked``, ``transposed:G``, or a function of the layer.

    >>> class Mixing(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.kernel = nn.Parameter(torch.zeros(3, 5))
    >>> register_layer_type(Mixing, "mixing", ("kernel",), view="columns")
    >>> find_sites(nn.Sequential(Mixing()))[0]
    Site(name='0.kernel', parameter='0.kernel', kind='mixing', shape=(3, 5), view='columns', aliases=())
    """
    if not parameters:
        raise ModelError(f"the layer type {layer.__name__} needs at least one parameter name")
    _LAYER_TYPES[layer] = LayerType(kind, tuple(parameters), view if callable(view) else lambda _: view)


def find_sites(
    model: nn.Module, only: Iterable[str] | None = None, exclude: Iterable[str] | None = None
) -> tuple[Site, ...]:
    r"""Return every quantizable weight of `model` in the order of its modules; tied weights once.

    Args:
        model: any module; it is not changed and not called.
        only: names or ``re:`` patterns of the sites to keep; all when None.
        exclude: names or patterns of sites to leave out.

    Raises:
        ModelError: there is no site, or a weight is not a plain parameter.
        LayerNameError: a name or pattern matches nothing.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    >>> [(site.name, site.matrix_shape) for site in find_sites(model, exclude=["re:.*3"])]
    [('0', (8, 27))]
    """
    sites = tuple(_sites(model))
    if not sites:
        raise ModelError(_nothing_found(model))
    names = [site.name for site in sites]
    kept = set(names if only is None else select(names, only)) - set(select(names, exclude or ()))
    if not kept:
        raise ModelError(f"no layer is left of {len(names)}: `only` and `exclude` together leave nothing to quantize")
    return tuple(site for site in sites if site.name in kept)


def get_weight(model: nn.Module, site: Site) -> Tensor:
    """Return the weight of `site`, detached; it shares memory with the model.

    Raises:
        ModelError: the model has no such weight, or it has been moved out of memory.
    """
    weight = _parameter(model, site).detach()
    if weight.is_meta:
        raise ModelError(
            f"the weight of '{site.name}' is not in memory (offloaded by accelerate, or never loaded); load the model "
            "without a device_map, or quantize its folder with --stream (geoquant.streaming)"
        )
    return weight


def set_weight_(model: nn.Module, site: Site, weight: Tensor) -> None:
    """Copy `weight` into the model in place, so that tied layers follow; dtype and device stay the model's."""
    parameter = _parameter(model, site)
    if tuple(weight.shape) != site.shape:
        raise ModelError(f"the weight of '{site.name}' is {site.shape}; a tensor {tuple(weight.shape)} came")
    with writing(parameter):
        parameter.copy_(weight)


@contextmanager
def temporarily(model: nn.Module, site: Site, weight: Tensor) -> Iterator[None]:
    """Give `site` another weight for a while; its own bits come back afterwards, whatever happens.

    >>> layer = nn.Linear(2, 1)
    >>> before = layer.weight.detach().clone()
    >>> with temporarily(layer, find_sites(layer)[0], torch.zeros(1, 2)):
    ...     layer.weight.tolist()
    [[0.0, 0.0]]
    >>> torch.equal(layer.weight, before)
    True
    """
    saved = get_weight(model, site).clone()
    set_weight_(model, site, weight)
    try:
        yield
    finally:
        set_weight_(model, site, saved)


@contextmanager
def writing(parameter: Tensor) -> Iterator[None]:
    """Allow writing in place: a parameter made under inference mode may only be written under it."""
    with torch.inference_mode() if parameter.is_inference() else torch.no_grad():
        yield


def _parameter(model: nn.Module, site: Site) -> nn.Parameter:
    try:
        parameter = model.get_parameter(site.parameter)
    except AttributeError as error:
        raise ModelError(f"this model has no parameter '{site.parameter}'; the site is another model's") from error
    if tuple(parameter.shape) != site.shape:
        raise ModelError(f"'{site.parameter}' has shape {tuple(parameter.shape)} here; the site says {site.shape}")
    return parameter


def _sites(model: nn.Module) -> Iterator[Site]:
    names = _names_by_tensor(model)
    seen: set[tuple[int, ...]] = set()
    taken: set[str] = set()
    for path, layer in model.named_modules():
        found = layer_type(layer)
        if found is None:
            continue
        for attribute in found.parameters:
            weight = _plain_weight(path, layer, attribute)
            if weight is None or not weight.is_floating_point() or weight.numel() == 0 or _key(weight) in seen:
                continue
            seen.add(_key(weight))
            first, *aliases = names[_key(weight)]
            shape, view = tuple(weight.shape), found.view(layer)
            views.matrix_shape(view, shape)
            name = _site_name(first) if _site_name(first) not in taken else first
            taken.add(name)
            yield Site(name, first, found.kind, shape, view, tuple(aliases))


def layer_type(layer: nn.Module) -> LayerType | None:
    """Return the registered type of `layer`, that of its nearest ancestor class, or None."""
    for cls in type(layer).__mro__:
        found = _LAYER_TYPES.get(cls) or _LAYER_TYPES.get(f"{cls.__module__}.{cls.__qualname__}")
        if found is not None:
            return found
    return None


def _plain_weight(path: str, layer: nn.Module, attribute: str) -> nn.Parameter | None:
    """Return the parameter, None where the layer has none, or say why it cannot be a site."""
    parameter = layer._parameters.get(attribute)
    place = f"'{path}.{attribute}'" if path else f"'{attribute}'"
    if parameter is not None and nn.parameter.is_lazy(parameter):
        raise ModelError(f"the lazy layer weight {place} has no shape yet; call the model once first")
    if parameter is None and isinstance(getattr(layer, attribute, None), Tensor):
        raise ModelError(
            f"the weight {place} is computed from other parameters (a parametrization or weight norm); "
            "make it plain first, for example with torch.nn.utils.parametrize.remove_parametrizations"
        )
    return parameter


def _key(tensor: Tensor) -> tuple[int, ...]:
    """Identify a tensor by its memory: two Parameter objects over one storage are tied as well."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), *tensor.shape, *tensor.stride())


def _names_by_tensor(model: nn.Module) -> dict[tuple[int, ...], list[str]]:
    """Map each parameter to all its names, in state-dict order.

    Raises `ModelError` where two parameters start at one place in memory with different shapes: changing
    one would change the other behind its back.
    """
    names: dict[tuple[int, ...], list[str]] = {}
    starts: dict[tuple[int, ...], tuple[tuple[int, ...], str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(parameter) or parameter.numel() == 0:
            continue
        key = _key(parameter)
        other, other_name = starts.setdefault(key[:2], (key, name))
        if other != key:
            raise ModelError(
                f"'{other_name}' and '{name}' share memory but not their shape; "
                "give one of them its own copy before quantizing"
            )
        names.setdefault(key, []).append(name)
    return names


def _site_name(parameter: str) -> str:
    """Shorten a parameter's name to its layer's.

    >>> _site_name("layer1.0.conv1.weight"), _site_name("attn.in_proj_weight"), _site_name("weight")
    ('layer1.0.conv1', 'attn.in_proj', 'weight')
    """
    for suffix in (".weight", "_weight"):
        if parameter.endswith(suffix):
            return parameter.removesuffix(suffix)
    return parameter


def _nothing_found(model: nn.Module) -> str:
    seen = sorted({type(module).__name__ for module in model.modules()})
    listed = ", ".join(seen[:8]) + (f" and {len(seen) - 8} more" if len(seen) > 8 else "")
    return (
        f"this model has no quantizable layer: it holds {listed}; expected layers such as Linear, Conv2d or "
        "Embedding with floating-point weights; teach geoquant others with register_layer_type(YourLayer, 'kind')"
    )
