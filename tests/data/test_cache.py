"""Is the cache believed only while it is true, and does a broken one cost no more than time?"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from geoquant.data.cache import cached


class Decoder:
    """Counts how often the images really are decoded."""

    def __init__(self, value: int = 7) -> None:
        self.calls = 0
        self.value = value

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.full((3, 2, 2, 1), self.value, np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    file = tmp_path / "train.parquet"
    file.write_bytes(b"source")
    return [file]


def test_second_call_does_not_decode_and_gives_the_same(files, own_cache):
    decode = Decoder()
    first, second = cached("a/b", files, decode), cached("a/b", files, decode)
    assert decode.calls == 1
    assert np.array_equal(first, second)
    assert second.dtype == np.uint8
    assert sorted(file.suffix for file in (own_cache / "images").iterdir()) == [".json", ".npy"]


def test_a_changed_source_is_decoded_again(files):
    cached("a", files, Decoder(1))
    os.utime(files[0], ns=(0, files[0].stat().st_mtime_ns + 1))
    assert cached("a", files, Decoder(2))[0, 0, 0, 0] == 2


def test_another_set_or_name_does_not_share(files, tmp_path):
    cached("a", files, Decoder(1))
    other = tmp_path / "test.parquet"
    other.write_bytes(b"source")
    os.utime(other, ns=(0, files[0].stat().st_mtime_ns))
    assert cached("a", [other], Decoder(2))[0, 0, 0, 0] == 2
    assert cached("b", files, Decoder(3))[0, 0, 0, 0] == 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "pickle", "no note", "foreign note"])
def test_a_damaged_entry_is_rebuilt(files, own_cache, damage):
    cached("a", files, Decoder(1))
    entry = next((own_cache / "images").glob("*.npy"))
    data = entry.read_bytes()
    match damage:
        case "truncate":
            entry.write_bytes(data[:-1])
        case "flip":
            entry.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "empty":
            entry.write_bytes(b"")
        case "pickle":
            np.save(entry, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        case "no note":
            entry.with_suffix(".json").unlink()
        case "foreign note":
            entry.with_suffix(".json").write_text('{"format": "geoquant-plan"}')
    again, after = Decoder(2), Decoder(3)
    assert cached("a", files, again)[0, 0, 0, 0] == 2
    assert cached("a", files, after)[0, 0, 0, 0] == 2
    assert (again.calls, after.calls) == (1, 0)


@pytest.mark.parametrize("where", ["a file", "below a file", "no home"])
def test_a_cache_that_cannot_be_written_does_not_fail_the_run(files, tmp_path, monkeypatch, where):
    if where == "no home":
        monkeypatch.delenv("GEOQUANT_CACHE_DIR")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        (tmp_path / "taken").write_text("")
        monkeypatch.setenv("GEOQUANT_CACHE_DIR", str(tmp_path / "taken" / ("" if where == "a file" else "deeper")))
    decode = Decoder()
    assert cached("a", files, decode).shape == (3, 2, 2, 1)
    assert cached("a", files, decode).shape == (3, 2, 2, 1)
    assert decode.calls == 2
