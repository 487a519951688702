r"""Which texts does a classifier read, and which class is each?

A line of a text file is an example; where every line begins with a class and a tab (``1<TAB>a fine film``, a number or
a name that the model knows), that is its label. Rows of parquet files with a column ``text`` are examples, a column
``label`` their labels. Without labels there is enough to calibrate, and nothing to evaluate. Texts of one length in
tokens share a batch, so nothing is padded. One text per example: pairs, such as premise and hypothesis, are not
covered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geoquant.data.batches import Batches
from geoquant.data.hub import locate
from geoquant.data.parquet import LABEL_COLUMN, read_column_names, read_labels, read_texts
from geoquant.data.text import TEXT_COLUMN, holds_text, load_text
from geoquant.errors import DataError


@dataclass(frozen=True)
class ExampleSet:
    """Texts with their classes.

    Attributes:
        texts: one per example.
        labels: class of each, from 0; None where none is given.
        description: where they come from.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None
    description: str


def load_examples(spec: str | Path, split: str, classes: Mapping[str, int]) -> ExampleSet:
    """Read the examples of one split.

    Args:
        spec: see `geoquant.data.load_text`.
        split: ``train``, ``test`` or ``validation``.
        classes: number of each class by its name.

    Raises:
        DataError: there are no such texts, only some lines have a label, or a label is no class.
    """
    if holds_text(spec):
        text = load_text(spec, split)
        lines = [line for document in text.documents for line in document.splitlines() if line.strip()]
        return _of_lines(lines, classes, text.description)
    place = locate(spec, split)
    texts = tuple(read_texts(place.files, TEXT_COLUMN))
    labels = None
    if LABEL_COLUMN in read_column_names(place.files[0]):
        labels = tuple(read_labels(place.files).tolist())
        _check(labels, classes, place.name)
    return ExampleSet(texts, labels, f"{place.name} {split}")


def _of_lines(lines: Sequence[str], classes: Mapping[str, int], where: str) -> ExampleSet:
    r"""Read labels where all lines have them.

    >>> _of_lines(["0\tdull", "good\tfine"], {"bad": 0, "good": 1}, "toy")
    ExampleSet(texts=('dull', 'fine'), labels=(0, 1), description='toy')
    """
    if not lines:
        raise DataError(f"{where} holds no line with text; expected an example a line")
    parted = [line.partition("\t") for line in lines]
    found = [classes.get(first, int(first) if first.isdecimal() else None) if tab else None for first, tab, _ in parted]
    labels = tuple(each for each in found if each is not None)
    if not labels:
        return ExampleSet(tuple(lines), None, where)
    if len(labels) < len(lines):
        place = found.index(None)
        raise DataError(
            f"{where}: {len(lines) - len(labels)} of {len(lines)} lines have no label ('{lines[place][:40]}'); "
            "expected 'class<TAB>text' in all lines or in none"
        )
    _check(labels, classes, where)
    return ExampleSet(tuple(text for _, _, text in parted), labels, where)


def _check(labels: Sequence[int], classes: Mapping[str, int], where: str) -> None:
    if max(labels, default=0) >= len(classes):
        raise DataError(f"{where} has the label {max(labels)}; the model knows the classes 0 to {len(classes) - 1}")


def example_batches(
    examples: ExampleSet,
    tokenizer: Any,
    window: int,
    *,
    batch_size: int = 8,
    limit: int | None = None,
    seed: int | None = None,
) -> Batches[dict[str, torch.Tensor]]:
    """Return batches of ``input_ids`` (samples, tokens) and, where known, ``labels`` (samples,).

    Args:
        examples: texts.
        tokenizer: of transformers; adds its special tokens.
        window: longer texts are cut to so many tokens.
        batch_size: at most so many texts of one length.
        limit: at most so many examples.
        seed: draws them; None takes the first ones.

    Raises:
        DataError: there is no example.
    """
    total = len(examples.texts)
    order = torch.arange(total)
    if seed is not None:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    chosen = order[:limit].tolist()
    if not chosen:
        raise DataError(f"{examples.description} holds no example")
    settings = {"add_special_tokens": True, "truncation": True, "max_length": window}
    tokens = {place: tokenizer.encode(examples.texts[place], **settings) for place in chosen}
    groups: list[list[int]] = []
    for place in sorted(chosen, key=lambda each: len(tokens[each])):
        if groups and len(groups[-1]) < batch_size and len(tokens[groups[-1][0]]) == len(tokens[place]):
            groups[-1].append(place)
        else:
            groups.append([place])

    def make(index: int) -> dict[str, torch.Tensor]:
        batch = {"input_ids": torch.tensor([tokens[place] for place in groups[index]])}
        if examples.labels is not None:
            batch["labels"] = torch.tensor([examples.labels[place] for place in groups[index]])
        return batch

    said = f"{examples.description}, {len(chosen)} of {total} examples of up to {window} tokens"
    return Batches(len(groups), make, len(chosen), said if seed is None else f"{said}, seed {seed}")
