"""What does ``quantization_config`` say of a compressed-tensors folder, and which packed weights does it speak of?

Written: a group of exactly named modules per packing, and every module that stays dense in ``ignore``, so that no
engine has to guess. Read: what other tools write too, where targets may be patterns or ``Linear``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from geoquant.errors import ExportError, FileFormatError
from geoquant.export.hub_folder import CONFIG_FILE
from geoquant.export.pack_quantized import Packing, scheme
from geoquant.export.protocol import need
from geoquant.export.shards import read_json
from geoquant.models import Site
from geoquant.storage import Json

METHOD = "compressed-tensors"
FORM = "pack-quantized"


def quantization_config(packings: Mapping[Site, Packing | None]) -> Json:
    """Return the complete ``quantization_config`` of a folder whose sites are packed like this.

    Raises:
        ExportError: none is packed.
    """
    groups: dict[Packing, list[str]] = {}
    ignored: list[str] = []
    for site, packed in packings.items():
        if packed is None:
            ignored += [module_of(name) for name in (site.parameter, *site.aliases)]
        else:
            groups.setdefault(packed, []).append(module_of(site.parameter))
    if not groups:
        raise ExportError("no layer of the plan is packed, all stay in float; save such a model with save_pretrained")
    quantization = need("compressed_tensors.quantization", "hf")
    made = quantization.QuantizationConfig(
        config_groups={f"group_{i}": scheme(packed, names) for i, (packed, names) in enumerate(groups.items())},
        format=FORM,
        quantization_status=quantization.QuantizationStatus.COMPRESSED,
        ignore=ignored,
    )
    version = need("compressed_tensors", "hf").__version__
    return {**made.model_dump(mode="json"), "version": version, "sparsity_config": {}, "transform_config": {}}


def module_of(parameter: str) -> str:
    """Return the name of the module that holds a weight.

    >>> module_of("layers.0.up_proj.weight")
    'layers.0.up_proj'
    """
    return parameter.rpartition(".")[0]


def is_compressed(folder: Path) -> bool:
    """Whether the folder's configuration names compressed-tensors; never raises."""
    try:
        stated = read_json(folder / CONFIG_FILE).get("quantization_config")
    except FileFormatError:
        return False
    return isinstance(stated, dict) and stated.get("quant_method") == METHOD


def read_targets(folder: Path) -> dict[str, Packing]:
    """Return the packing of each target (a module's name, a ``re:`` pattern or a class) in ``config.json``.

    Raises:
        FileFormatError: the configuration is damaged, or of another method or form.
    """
    path = folder / CONFIG_FILE
    stated = read_json(path).get("quantization_config")
    if not isinstance(stated, dict) or stated.get("quant_method") != METHOD:
        raise FileFormatError(f"{path} does not name {METHOD}; expected the folder of a quantized model")
    found: dict[str, Packing] = {}
    try:
        for group in stated["config_groups"].values():
            form, weights = group.get("format") or stated["format"], group["weights"]
            if form != FORM:
                raise FileFormatError(f"{path} says that weights have the form {form}; only {FORM} is read")
            size = weights.get("group_size")
            packed = Packing(
                int(weights["num_bits"]), bool(weights["symmetric"]), int(size) if size and size > 0 else None
            )
            found |= dict.fromkeys(map(str, group["targets"]), packed)
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} has a damaged quantization_config ({error!r}); write it again") from error
    return found


def match_targets(folder: Path, targets: dict[str, Packing], modules: Iterable[str]) -> dict[str, Packing]:
    """Return the packing of each of `modules`, those whose packed weights are there.

    Raises:
        FileFormatError: a module is not spoken of, or one that is named has no packed weights.

    >>> packed = Packing(4, True, None)
    >>> match_targets(Path("out"), {"re:.*up": packed}, ["0.up", "1.up"])["1.up"] == packed
    True
    """
    found: dict[str, Packing] = {}
    for name in modules:
        fitting = [packed for target, packed in targets.items() if _matches(target, name)]
        if not fitting:
            raise FileFormatError(f"{folder} holds packed weights of '{name}', which its {CONFIG_FILE} does not name")
        found[name] = targets.get(name, fitting[0])
    lost = [target for target in targets if target not in found and "." in target and not target.startswith("re:")]
    if lost:
        raise FileFormatError(
            f"{folder} lacks the packed weights of {len(lost)} layers, such as '{lost[0]}'; copy it again"
        )
    return found


def _matches(target: str, module: str) -> bool:
    if target.startswith("re:"):
        try:
            return re.match(target.removeprefix("re:"), module) is not None
        except re.error:
            return False
    return target in (module, "Linear")
