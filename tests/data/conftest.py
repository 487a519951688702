"""Small parquet sets in the layout of the Hub, and a cache folder of their own for every test."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

Writer = Callable[..., Path]


def encode(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """Encode (H, W, C) without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def make_pixels(count: int, side: int = 5, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side + 1, channels), dtype=np.uint8)


def write_parquet(
    file: Path, encoded: Sequence[bytes | None], labels: Sequence[int | None], column: str = "img", plain: bool = False
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = list(encoded) if plain else [{"bytes": each, "path": None} for each in encoded]
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(images, kind), "label": pa.array(labels, pa.int64())})
    pq.write_table(table, file, row_group_size=4)
    return file


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("GEOQUANT_CACHE_DIR", str(folder))
    monkeypatch.delenv("GEOQUANT_DATA_DIR", raising=False)
    return folder
