"""Which files stand beside the weights in a folder that `from_pretrained` reads?

The configuration with what it says about quantization, the generation settings, and the tokenizer's files, copied as
they are. Python files of models that bring their own code are not copied: nothing here hands code on.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geoquant.errors import ExportError
from geoquant.export.shards import read_json
from geoquant.models import source_folder
from geoquant.storage import Json

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


def model_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype that most weights of `model` have.

    >>> model_dtype(nn.Linear(2, 2).bfloat16())
    torch.bfloat16
    """
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def write_configuration(folder: Path, model: nn.Module, quantization: Json) -> None:
    """Write ``config.json`` with `quantization`, and the generation settings of models that generate."""
    dtype = str(model_dtype(model)).removeprefix("torch.")
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_json_string"):
        config = copy.deepcopy(config)
        config.architectures = [type(model).__name__]
        config.quantization_config = None
        document = json.loads(config.to_json_string())
        document |= _stated(model, "use_cache")
    else:
        document = {}
    document.pop("torch_dtype", None)
    document |= {"dtype": dtype, "quantization_config": quantization}
    (folder / CONFIG_FILE).write_text(json.dumps(document, indent=2, sort_keys=True), encoding="utf-8")
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        (folder / GENERATION_FILE).write_text(generation.to_json_string(), encoding="utf-8")


def _stated(model: nn.Module, *names: str) -> Json:
    """Return settings as the model's own folder has them: loading for quantization switches the cache off."""
    source = source_folder(model)
    document = {} if source is None else read_json(source / CONFIG_FILE)
    return {name: document[name] for name in names if name in document}


def copy_tokenizer(folder: Path, model: nn.Module, source: Path | str | None) -> None:
    """Copy the tokenizer's files from `source`, or from where `model` was loaded when that is a folder.

    Raises:
        ExportError: `source` is given and holds none.
    """
    place = Path(source) if source else source_folder(model)
    files = [] if place is None else [place / name for name in TOKENIZER_FILES if (place / name).is_file()]
    if source and not files:
        raise ExportError(f"{source} holds no tokenizer file; expected one such as {TOKENIZER_FILES[0]}")
    for file in files:
        shutil.copyfile(file, folder / file.name)
