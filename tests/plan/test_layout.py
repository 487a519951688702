"""The predicted size of the file is its size, whatever is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from geoquant.plan.layout import _CODES, Entry, file_bytes

_TORCH = {code: getattr(torch, name) for name, code in _CODES.items()}

_names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
_shapes = st.lists(st.integers(1, 40), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(_names, st.tuples(st.sampled_from(sorted(_TORCH)), _shapes), max_size=12),
    text=st.dictionaries(
        st.just("geoquant"), st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
    ),
)
def test_predicted_size_is_the_size_on_disk(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[str, tuple[int, ...]]], text: dict[str, str]
) -> None:
    tensors.pop("__metadata__", None)
    path = tmp_path_factory.mktemp("size") / "file.safetensors"
    save_file(
        {name: torch.zeros(shape, dtype=_TORCH[code]) for name, (code, shape) in tensors.items()}, path, text or None
    )
    entries = [Entry(name, code, shape) for name, (code, shape) in tensors.items()]
    assert file_bytes(entries, text) == path.stat().st_size


def test_offsets_count_their_digits(tmp_path: Path) -> None:
    """Negative twin: a size that forgets the header's digits is wrong for tensors that only differ in length."""
    sizes = {count: file_bytes([Entry("a", "U8", (count,)), Entry("b", "U8", (1,))], {}) for count in (9, 9_999_999)}
    assert sizes[9_999_999] - sizes[9] > 9_999_990
