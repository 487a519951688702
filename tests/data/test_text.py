"""Texts are found and cut into documents; every token but the first is scored exactly once, whatever the windows."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoquant.data import calibration_batches, evaluation_batches, evaluation_windows, load_data, load_text, tokenize
from geoquant.data.text import TextSet
from geoquant.errors import DataError


class Letters:
    """One token a character; 0 is BOS."""

    bos_token_id: int | None = 0
    eos_token_id: int | None = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]


class Separated(Letters):
    bos_token_id = None
    eos_token_id = 7


class Plain(Letters):
    bos_token_id = None


@pytest.mark.parametrize(("tokenizer", "expected"), [(Letters, "0ab0c"), (Separated, "7ab7c"), (Plain, "abc")])
def test_documents_begin_with_bos_else_eos_else_nothing(tokenizer, expected):
    codes = [int(letter) if letter.isdigit() else ord(letter) for letter in expected]
    assert tokenize(["ab", "c"], tokenizer()).tolist() == codes
    with pytest.raises(DataError, match="no token"):
        tokenize([""], Plain())


@given(tokens=st.integers(2, 60), window=st.integers(2, 17), data=st.data())
def test_every_token_but_the_first_is_scored_once_in_any_windows(tokens, window, data):
    stride = data.draw(st.none() | st.integers(1, window - 1))
    scored = []
    for start, end, first in evaluation_windows(torch.arange(tokens), window, stride):
        assert end - start <= window
        assert start < first < end <= tokens  # at least one token of context, at least one prediction
        scored += range(first, end)
    assert scored == list(range(1, tokens))


@pytest.mark.parametrize(("window", "stride"), [(1, None), (4, 4), (4, 0)])
def test_windows_that_would_lose_tokens_are_refused(window, stride):
    with pytest.raises(DataError, match=f"window={window}"):
        evaluation_windows(torch.arange(9), window, stride)


def test_labels_mark_exactly_the_scored_tokens():
    text = TextSet(("abcdefg",), "a toy")  # a stream of 8 tokens
    batches = evaluation_batches(text, Letters(), 4, stride=2, batch_size=2)
    seen = []
    for batch in batches:
        shifted = batch["labels"][:, 1:]  # the first label of a window has no logits that predict it
        seen += shifted[shifted != -100].tolist()
    assert seen == [ord(letter) for letter in "abcdefg"]
    assert "7 predictions in 3 windows" in batches.description
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 4), (1, 4)]


def test_calibration_takes_whole_windows_once_in_a_drawn_order():
    text = TextSet(("abcdefghij",), "a toy")
    batches = calibration_batches(text, Letters(), 3, batch_size=2, seed=1)
    rows = torch.cat([batch["input_ids"] for batch in batches])
    assert batches.samples == len(rows) == 3
    assert sorted(rows[:, 0].tolist()) == [0, ord("c"), ord("f")]
    again = torch.cat([b["input_ids"] for b in calibration_batches(text, Letters(), 3, batch_size=2, seed=1)])
    assert torch.equal(rows, again)
    with pytest.raises(DataError, match="11 tokens fill no window of 12"):
        calibration_batches(text, Letters(), 12)


def test_splits_of_folders_files_and_parquet(tmp_path, monkeypatch):
    two = tmp_path / "two"
    two.mkdir()
    (two / "v1_train_head.txt").write_text("one<|endoftext|>\ntwo\n<|endoftext|>", encoding="utf-8")
    (two / "valid.txt").write_text("three", encoding="utf-8")
    assert load_text(two, "train").documents == ("one", "two")
    assert load_text(two, "validation").documents == ("three",)
    with pytest.raises(DataError, match="several texts"):
        load_text(two, "test")
    single = tmp_path / "single"
    single.mkdir()
    (single / "input.txt").write_text("0123456789", encoding="utf-8")
    assert load_text(single, "train").documents == ("012345678",)
    assert load_text(single, "test").documents == ("9",)
    monkeypatch.setenv("GEOQUANT_DATA_DIR", str(tmp_path))
    assert load_text("single/input.txt", "test").documents == ("0123456789",)
    assert load_text("single", "test").documents == ("9",)
    table = tmp_path / "table"
    table.mkdir()
    pq.write_table(pa.table({"text": ["a", None, "b"]}), table / "test-00000-of-00001.parquet")
    assert load_text("table", "test").documents == ("a", "b")
    batches = load_data("table", "test", tokenizer=Letters(), window=8)
    assert batches[0]["input_ids"].tolist() == [[0, ord("a"), 0, ord("b")]]


def test_bad_texts_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not text in UTF-8"):
        load_text(tmp_path / "latin.txt", "train")
    with pytest.raises(DataError, match="no text file"):
        load_text(tmp_path / "absent.txt", "train")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "latin.txt").unlink()
    with pytest.raises(DataError, match="expected text"):
        load_text(tmp_path, "train")
