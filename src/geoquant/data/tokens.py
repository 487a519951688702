"""Which tokens does a language model read, and which of its predictions count?

A text becomes one stream: every document begins with the tokenizer's BOS token (its EOS token where it has no BOS,
nothing where it has neither), and documents follow one another. Windows of the stream are what the model reads. In
evaluation they overlap so that **every token but the first is predicted exactly once**: a window advances by `stride`
tokens, at most its length − 1, and what an earlier window has predicted only serves as context (label −100). No
window gets a BOS of its own. So the loss over N tokens is a mean over N − 1 predictions whatever window and stride
are; longer context per prediction makes it smaller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from geoquant.data.batches import Batches
from geoquant.data.text import TextSet
from geoquant.errors import DataError

IGNORED = -100
TokenBatch = dict[str, Tensor]


class Tokenizer(Protocol):
    """What is needed of a tokenizer; those of transformers have it."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the tokens of `text`."""
        ...


def tokenize(documents: Iterable[str], tokenizer: Tokenizer) -> Tensor:
    """Return the stream of all documents, int64 (tokens,), each behind a BOS token.

    Raises:
        DataError: there is no token at all.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    head = [] if first is None else [first]
    stream: list[int] = []
    for document in documents:
        stream += [*head, *tokenizer.encode(document, add_special_tokens=False)]
    if not stream:
        raise DataError("the text holds no token; expected at least one document with words in it")
    return torch.tensor(stream, dtype=torch.int64)


def evaluation_windows(stream: Tensor, window: int, stride: int | None = None) -> list[tuple[int, int, int]]:
    """Return (start, end, first scored token) of each window: every token but the first of all is scored once.

    Args:
        stream: (tokens,).
        window: tokens that the model reads at once.
        stride: tokens from one window to the next; window − 1 by default, smaller ones give more context.

    Raises:
        DataError: fewer than two tokens, a window shorter than 2, or a stride beyond window − 1.

    >>> evaluation_windows(torch.arange(8), window=4)
    [(0, 4, 1), (3, 7, 4), (6, 8, 7)]
    >>> evaluation_windows(torch.arange(6), window=4, stride=2)
    [(0, 4, 1), (2, 6, 4)]
    """
    stride = window - 1 if stride is None else stride
    if window < 2 or not 1 <= stride <= window - 1:
        raise DataError(f"window={window}, stride={stride}: expected a window of at least 2 and a stride below it")
    if len(stream) < 2:
        raise DataError(f"a stream of {len(stream)} tokens predicts nothing; expected at least 2")
    found, start, scored = [], 0, 1
    while scored < len(stream):
        end = min(start + window, len(stream))
        found.append((start, end, scored))
        start, scored = start + stride, end
    return found


def evaluation_batches(
    text: TextSet,
    tokenizer: Tokenizer,
    window: int,
    *,
    stride: int | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> Batches[TokenBatch]:
    """Return batches of ``input_ids`` and ``labels`` that score every token of the first `limit` windows once.

    Windows of one length share a batch, so nothing is padded.
    """
    stream = tokenize(text.documents, tokenizer)
    places = evaluation_windows(stream, window, stride)[:limit]
    groups: list[list[tuple[int, int, int]]] = []
    for place in places:
        length = place[1] - place[0]
        if groups and len(groups[-1]) < batch_size and groups[-1][0][1] - groups[-1][0][0] == length:
            groups[-1].append(place)
        else:
            groups.append([place])

    def make(index: int) -> TokenBatch:
        rows, labels = [], []
        for start, end, scored in groups[index]:
            rows.append(stream[start:end])
            labels.append(torch.where(torch.arange(start, end) < scored, IGNORED, stream[start:end]))
        return {"input_ids": torch.stack(rows), "labels": torch.stack(labels)}

    total = sum(end - scored for _, end, scored in places)
    said = f"{text.description}, {total} predictions in {len(places)} windows of up to {window} tokens"
    return Batches(len(groups), make, len(places), said)


def calibration_batches(
    text: TextSet,
    tokenizer: Tokenizer,
    window: int,
    *,
    batch_size: int = 8,
    limit: int | None = None,
    seed: int | None = None,
) -> Batches[TokenBatch]:
    """Return batches of whole windows that do not overlap, drawn by `seed` (in order when None).

    Raises:
        DataError: the text is shorter than one window.
    """
    stream = tokenize(text.documents, tokenizer)
    count = len(stream) // window
    if count == 0:
        raise DataError(f"{text.description}: {len(stream)} tokens fill no window of {window}; give more text")
    order = torch.arange(count)
    if seed is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    chosen = order[:limit]
    parts = torch.split(chosen, batch_size)
    rows = stream[: count * window].view(count, window)

    def make(index: int) -> TokenBatch:
        picked = rows[parts[index]]
        return {"input_ids": picked, "labels": picked.clone()}

    said = f"{text.description}, {len(chosen)} of {count} windows of {window} tokens"
    return Batches(len(parts), make, len(chosen), said if seed is None else f"{said}, seed {seed}")


def text_batches(
    text: TextSet,
    split: str,
    tokenizer: Tokenizer,
    *,
    window: int,
    stride: int | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    seed: int | None = None,
) -> Batches[Any]:
    """Return `calibration_batches` of a ``train`` split, `evaluation_batches` of any other."""
    if split == "train":
        return calibration_batches(text, tokenizer, window, batch_size=batch_size, limit=limit, seed=seed)
    return evaluation_batches(text, tokenizer, window, stride=stride, batch_size=batch_size, limit=limit)
