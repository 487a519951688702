"""How does a folder in the layout of the Hugging Face Hub become a model, and its tokenizer a tokenizer?

Needs the extra ``hf``. Only safetensors are read and no code of the folder is run; a missing shard, a truncated file
or a weight that the files lack is refused before any work. Weights are converted to float32. The key/value cache
is off: predictions over whole windows need none.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from geoquant.errors import FileFormatError, GeoquantError, MissingExtraError, ModelError, WeightsError

TASKS = ("causal-lm", "classification")
CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"

_AUTO_CLASSES = {"causal-lm": "AutoModelForCausalLM", "classification": "AutoModelForSequenceClassification"}
_ENDINGS = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForSequenceClassification": "classification",
}


def is_pretrained_folder(spec: str | Path) -> bool:
    """Say whether `spec` is a folder that says which transformers model it holds.

    >>> is_pretrained_folder("geoquant.models.zoo:mlp3_mnist")
    False
    """
    return (Path(spec) / CONFIG_FILE).is_file()


def weight_files(folder: Path | str) -> tuple[Path, ...]:
    """Return the safetensors files of a folder, after checking that all are there and whole.

    Raises:
        FileFormatError: a shard is missing or truncated, or the weights are pickles.
    """
    folder = Path(folder)
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if not names or any(Path(name).name != name for name in names):
                raise ValueError("its weight_map must name files beside it")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{index} is damaged ({error}); copy or download it again") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileFormatError(
                f"{folder} lacks {len(missing)} of {len(names)} weight files ({missing[0]}); download them first"
            )
        files = tuple(folder / name for name in names)
    elif (folder / WEIGHTS_FILE).is_file():
        files = (folder / WEIGHTS_FILE,)
    else:
        pickles = next(folder.glob("*.bin"), None)
        said = f" ({pickles.name} is a pickle, which could execute code)" if pickles else ""
        raise FileFormatError(f"{folder} holds no {WEIGHTS_FILE} and no {INDEX_FILE}{said}; save it as safetensors")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise FileFormatError(f"{file} is not a whole safetensors file ({error}); copy it again") from error
    return files


def read_config(folder: Path | str) -> Any:
    """Return the transformers configuration of a folder.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: the configuration is of no model that this transformers knows.
    """
    transformers = import_transformers()
    try:
        return transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{folder} holds no configuration that transformers knows: {_first_line(error)}") from error


def choose_task(config: Any, folder: Path | str, task: str | None = None) -> str:
    """Return ``causal-lm`` or ``classification``: what is asked for, else what the configuration was made for."""
    if task is not None:
        if task not in TASKS:
            raise ModelError(f"there is no task '{task}'; expected {' or '.join(TASKS)}")
        return task
    names = getattr(config, "architectures", None) or ("",)
    found = next((kind for ending, kind in _ENDINGS.items() if names[0].endswith(ending)), None)
    if found is None:
        raise ModelError(f"{folder} holds a {names[0] or 'model without an architecture'}; say what it is for: --task")
    return found


def auto_class(task: str) -> Any:
    """Return transformers' class that builds a model for `task`."""
    return getattr(import_transformers(), _AUTO_CLASSES[task])


def load_pretrained(folder: Path | str, task: str | None = None, **settings: Any) -> nn.Module:
    """Return the model of a folder in eval mode, float32.

    Args:
        folder: with ``config.json`` and safetensors.
        task: ``causal-lm`` or ``classification``; by default what the configuration was made for.
        settings: for ``from_pretrained``, such as ``device_map`` and ``offload_folder`` (needs accelerate).

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: transformers does not know the model.
        FileFormatError: a weight file is missing or truncated.
        WeightsError: the files lack a weight.
    """
    config = read_config(folder)
    kind = choose_task(config, folder, task)
    weight_files(folder)
    config.use_cache = False
    chosen = {"dtype": torch.float32, "local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        with _quiet():
            model, notes = auto_class(kind).from_pretrained(
                str(folder), config=config, output_loading_info=True, **(chosen | settings)
            )
    except GeoquantError:
        raise
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded as {kind}: {_first_line(error)}") from error
    missing = sorted(notes["missing_keys"])
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} weights of its {type(model).__name__} ({missing[0]}), which would be "
            "random; was it saved for another task?"
        )
    loaded: nn.Module = model.eval()
    return loaded


def load_tokenizer(folder: Path | str) -> Any:
    """Return the tokenizer of a folder.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: the folder holds none.
    """
    transformers = import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{folder} holds no tokenizer ({_first_line(error)}); copy that of its model there") from error


def source_folder(model: nn.Module) -> Path | None:
    """Return the folder that `load_pretrained` read `model` from; None for other models."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    return Path(name) if name and is_pretrained_folder(name) else None


def class_names(model: nn.Module) -> dict[str, int] | None:
    """Return the number of each class of a sequence classifier of transformers by its name; None for other models."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return None
    config: Any = model.config
    return {str(name): int(number) for name, number in config.label2id.items()}


def context_length(model: nn.Module) -> int | None:
    """Return how many tokens `model` reads at most, as its configuration says."""
    config = getattr(model, "config", None)
    lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((length for length in lengths if isinstance(length, int)), None)


def import_transformers() -> ModuleType:
    """Import transformers, or say which extra is missing."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("models of the Hugging Face Hub need transformers: pip install geoquant[hf]") from error
    found: ModuleType = transformers
    return found


class _quiet:  # noqa: N801 (a context manager, like those of contextlib)
    """Keep transformers from drawing a bar of its own and listing keys: `load_pretrained` says what matters."""

    def __enter__(self) -> None:
        logging = import_transformers().utils.logging
        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        logging = import_transformers().utils.logging
        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
