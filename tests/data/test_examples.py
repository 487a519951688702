"""Examples of classifiers: labels in all lines or in none, nothing padded, every text once."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from geoquant.data import ExampleSet, example_batches, load_data, load_examples
from geoquant.errors import DataError
from language import byte_tokenizer

CLASSES = {"bad": 0, "so-so": 1, "good": 2}


def write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_labels_are_numbers_or_names_and_stand_before_a_tab(tmp_path):
    spec = write(tmp_path, "some.txt", "2\ta fine\tfilm\n\nbad\tdull\n")
    found = load_examples(spec, "train", CLASSES)
    assert (found.texts, found.labels) == (("a fine\tfilm", "dull"), (2, 0))
    assert load_examples(write(tmp_path, "none.txt", "fine\nwith a\ttab\n"), "train", CLASSES).labels is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\tfine\nno label here\n", r"1 of 2 lines have no label \('no label here'\)"),
        ("3\tfine\n", "label 3; the model knows the classes 0 to 2"),
        ("\n \n", "no line with text"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        load_examples(write(tmp_path, "x.txt", text), "train", CLASSES)


def test_rows_of_parquet_files_are_examples(tmp_path):
    pq.write_table(pa.table({"text": ["fine", "dull"], "label": [2, 0]}), tmp_path / "test-0.parquet")
    pq.write_table(pa.table({"text": ["fine", "dull"]}), tmp_path / "train-0.parquet")
    found = load_examples(str(tmp_path), "test", CLASSES)
    assert (found.texts, found.labels) == (("fine", "dull"), (2, 0))
    assert load_examples(str(tmp_path), "train", CLASSES).labels is None


def test_a_split_by_characters_leaves_lines_whole(tmp_path):
    lines = [f"{index % 3}\texample number {index}" for index in range(40)]
    write(tmp_path, "all.txt", "\n".join(lines) + "\n")
    parts = [load_examples(str(tmp_path), split, CLASSES) for split in ("train", "test")]
    assert [f"{label}\t{text}" for part in parts for label, text in zip(part.labels, part.texts, strict=True)] == lines
    assert 2 < len(parts[1].texts) < 7


def test_every_text_comes_once_in_batches_of_one_length(tmp_path):
    tokenizer = byte_tokenizer()
    texts = tuple("abcdefgh"[: 1 + index % 4] + str(index) for index in range(30))
    examples = ExampleSet(texts, tuple(range(30)), "toy")
    batches = example_batches(examples, tokenizer, 32, batch_size=4)
    assert batches.samples == 30
    seen = {}
    for batch in batches:
        assert 1 <= len(batch["input_ids"]) <= 4
        for row, label in zip(batch["input_ids"], batch["labels"], strict=True):
            assert row.tolist() == tokenizer.encode(texts[int(label)], add_special_tokens=True)
            seen[int(label)] = 1
    assert len(seen) == 30
    some = example_batches(examples, tokenizer, 2, limit=5, seed=3)
    assert some.samples == sum(len(batch["labels"]) for batch in some) == 5
    assert max(batch["input_ids"].shape[1] for batch in some) <= 2
    again, other = (example_batches(examples, tokenizer, 2, limit=5, seed=seed) for seed in (3, 4))
    drawn = [sorted(torch.cat([batch["labels"] for batch in each]).tolist()) for each in (some, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_load_data_reads_examples_for_classifiers_and_windows_for_others(tmp_path):
    spec, tokenizer = write(tmp_path, "x.txt", "0\tdull film\n2\tfine film\n"), byte_tokenizer()
    found = load_data(spec, "test", tokenizer=tokenizer, window=16, classes=CLASSES)
    assert [batch["labels"].tolist() for batch in found] == [[0, 2]]
    stream = load_data(spec, "test", tokenizer=tokenizer, window=8)
    assert stream[0]["labels"].shape == stream[0]["input_ids"].shape
