"""Which tokens does a Llama have, in llama.cpp's terms?

Read from ``tokenizer.json``, SentencePiece-style byte-pair encodings only (Llama 1 and 2, Mistral, TinyLlama):
llama.cpp joins the pair whose result has the highest score first, so the score of a token is minus the rank of the
merge that makes it. Other kinds need a pre-tokenizer that ``tokenizer.json`` does not name; for them llama.cpp's own
converter is asked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from geoquant.errors import FileFormatError
from geoquant.export.protocol import need
from geoquant.export.shards import read_json
from geoquant.storage import Json

TOKENIZER_FILE = "tokenizer.json"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_NO_MERGE = -1e6


def read_tokens(folder: Path | None, count: int) -> tuple[list[str], list[float], list[int]] | None:
    """Return texts, scores and types of `count` tokens; None where the folder has no tokenizer of this kind.

    Raises:
        FileFormatError: ``tokenizer.json`` is damaged.
    """
    if folder is None or not (folder / TOKENIZER_FILE).is_file():
        return None
    document = read_json(folder / TOKENIZER_FILE)
    try:
        model = document["model"]
        if model["type"] != "BPE" or not model.get("byte_fallback"):
            return None
        return _tokens(document, count)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise FileFormatError(f"{folder / TOKENIZER_FILE} is damaged ({error!r}); copy it again") from error


def _tokens(document: Json, count: int) -> tuple[list[str], list[float], list[int]]:
    model = document["model"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    texts = [f"[PAD{place}]" for place in range(count)]
    scores, types = [_NO_MERGE] * count, [_UNUSED] * count
    for text, place in model["vocab"].items():
        texts[place] = text
        scores[place] = -float(ranks[text]) if text in ranks else _NO_MERGE
        types[place] = _BYTE if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text) else _NORMAL
    for added in document.get("added_tokens", []):
        texts[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER
    unknown = model.get("unk_token")
    if unknown in texts:
        types[texts.index(unknown)] = _UNKNOWN
    return texts, scores, types


def add_tokens(writer: Any, folder: Path | None, count: int) -> bool:
    """Write the tokenizer of `folder` into a file for `count` tokens; return whether there was one to write."""
    found = read_tokens(folder, count)
    if found is None or folder is None:
        return False
    texts, scores, types = found
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    need("gguf", "gguf").SpecialVocab(folder, n_vocab=count).add_to_gguf(writer, quiet=True)
    return True
