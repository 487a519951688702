"""Which net is an experiment about, and which data calibrate it, train it and judge it?

Nets of the zoo are trained here (`geoquant.study.trained`); a ResNet-20 and a small Llama come pretrained from
``$GEOQUANT_WEIGHTS_DIR``. Test data take no part in anything else; the ResNet-20 has seen all training images of
CIFAR-10, those for calibration too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from geoquant.data import AugmentedImages, ImageSet, TextSet, calibration_batches, evaluation_batches, load_images
from geoquant.data import load_text as load_documents
from geoquant.errors import GeoquantError, StudyError
from geoquant.models import load_pretrained, load_tokenizer, load_weights_
from geoquant.models.zoo import resnet20_cifar10
from geoquant.recovery.feeding import Shuffled, Source
from geoquant.study.at_hand import missing_data, missing_weights, weights_file
from geoquant.study.trained import Recipe, trained

RESNET20, STORIES = "resnet20_cifar10", "stories260K"
FILES = {RESNET20: "cifar10_resnet20.safetensors", STORIES: "stories260K"}
TEXT, JUDGED = "tinystories/v2_train_head.txt", "tinystories/v1_valid_head.txt"
WINDOW = 256


@dataclass(frozen=True, eq=False)
class Case:
    """A float net in eval mode with its data.

    Attributes:
        model: the net.
        calibration: batches of training data.
        source: training batches by epoch and place.
        test: batches that judge.
        rate: a learning rate that suits it.
    """

    model: nn.Module
    calibration: Sequence[Any]
    source: Source
    test: Sequence[Any]
    rate: float


def case_of(configuration: Mapping[str, Any]) -> Case:
    """Return the net of a cell.

    Args:
        configuration: ``net``, ``data`` and ``seed``; ``images`` and ``epochs`` of training where the net is not
            pretrained; ``calibration`` and ``test``, how many samples (windows of text) of each.

    Raises:
        StudyError: the weights are not at hand.
    """
    net = configuration["net"]
    if net == STORIES:
        return _stories(configuration)
    if net == RESNET20:
        return _resnet20(configuration)
    found = trained(Recipe(*(configuration[name] for name in ("net", "data", "images", "epochs", "seed"))))
    return _of_images(found.model, found.held_out, load_images(configuration["data"], "train"), configuration, 1e-3)


def missing(configuration: Mapping[str, Any]) -> str | None:
    """Return why the net of a cell is not at hand here, or None."""
    net = configuration.get("net")
    if net == STORIES:
        return missing_weights(FILES[net]) or _missing_text()
    weights = missing_weights(FILES[net]) if net in FILES else None
    return weights or (missing_data(configuration["data"]) if "data" in configuration else None)


def _missing_text() -> str | None:
    try:
        load_documents(TEXT, "train")
        load_documents(JUDGED, "validation")
    except GeoquantError as error:
        return str(error)
    return None


def _file(net: str) -> Any:
    found = weights_file(FILES[net])
    if found is None:
        raise StudyError(f"{missing_weights(FILES[net])}; set the variable to the folder that holds them")
    return found


def _resnet20(configuration: Mapping[str, Any]) -> Case:
    model = resnet20_cifar10()
    load_weights_(model, _file(RESNET20))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = load_images("cifar10", "train")
    return _of_images(model.eval(), images, images, configuration, 5e-4, "imagenet")


def _of_images(
    model: nn.Module,
    held_out: ImageSet,
    train: ImageSet,
    configuration: Mapping[str, Any],
    rate: float,
    normalize: Any = "dataset",
) -> Case:
    seed, photographs = configuration["seed"], train.images.shape[-1] == 3
    padding = None if photographs else 0
    source = AugmentedImages(train, min(128, len(train)), seed, normalize, padding=padding, mirror=photographs)
    test = load_images(train.name, "test").batches(250, configuration["test"], 0, normalize)
    return Case(model, held_out.batches(64, configuration["calibration"], seed, normalize), source, test, rate)


def _stories(configuration: Mapping[str, Any]) -> Case:
    """Return the Llama of 260 thousand weights; of the training stories some calibrate, and the others train."""
    place, seed = _file(STORIES), configuration["seed"]
    model, tokenizer = load_pretrained(place), load_tokenizer(place)
    documents = load_documents(TEXT, "train").documents
    some, rest = (TextSet(part, "TinyStories") for part in (documents[:200], documents[200:]))
    calibration = list(
        calibration_batches(some, tokenizer, WINDOW, batch_size=8, limit=configuration["calibration"], seed=seed)
    )
    source = Shuffled(list(calibration_batches(rest, tokenizer, WINDOW, batch_size=16, seed=seed)), seed)
    judged = load_documents(JUDGED, "validation")
    test = evaluation_batches(judged, tokenizer, 512, batch_size=8, limit=configuration["test"])
    return Case(model, calibration, source, list(test), 5e-4)
