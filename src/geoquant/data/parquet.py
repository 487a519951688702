"""How do encoded images in parquet files become one uint8 array, and text columns a list?

Reads the Hub's layout: a column ``image`` or ``img`` that holds the bytes of an encoded image (or a struct
with a field ``bytes``), and a column ``label``. All images of a set share one size; nothing is resized.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from geoquant.errors import DataError
from geoquant.progress import task

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMN = "label"
_CHUNK = 256
# Below this, handing the interpreter lock around costs more than decoding: two threads took 1.4 times as long
# as one on 32 × 32 WebP and 28 × 28 PNG, and 0.6 times on 128 × 128 PNG.
_THREADS_PAY_FROM_BYTES = 4096


def read_labels(files: Sequence[Path]) -> NDArray[np.int64]:
    """Return the labels of all rows of `files`, int64 of shape (N,).

    Raises:
        DataError: no label column, or a label that is missing, negative or not an integer.
    """
    parts = []
    for file in files:
        with _reading(file) as source:
            _require(file, source.schema_arrow.names, LABEL_COLUMN)
            column = source.read(columns=[LABEL_COLUMN])[LABEL_COLUMN]
        if not pa.types.is_integer(column.type) or column.null_count:
            raise DataError(f"{file}: labels are {column.type} with {column.null_count} missing; expected integers")
        parts.append(np.asarray(column.to_numpy(), dtype=np.int64))
    labels = np.concatenate(parts)
    if labels.size and labels.min() < 0:
        raise DataError(f"{files[0].parent}: found the label {labels.min()}; expected 0, 1, … for every image")
    return labels


def read_column_names(file: Path) -> list[str]:
    """Return the names of the columns of one parquet file."""
    with _reading(file) as source:
        names: list[str] = list(source.schema_arrow.names)
    return names


def read_texts(files: Sequence[Path], column: str) -> list[str]:
    """Return all rows of a column of strings; missing ones as empty strings.

    Raises:
        DataError: there is no such column, or it holds something else.
    """
    found: list[str] = []
    for file in files:
        with _reading(file) as source:
            _require(file, source.schema_arrow.names, column)
            values = source.read(columns=[column])[column]
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise DataError(f"{file}: '{column}' holds {values.type}; expected text")
        found += [value or "" for value in values.to_pylist()]
    return found


def read_images(files: Sequence[Path], name: str) -> NDArray[np.uint8]:
    """Decode all images of `files` into one array (N, H, W, C), C = 1 for grey images and 3 for the others.

    Args:
        files: parquet files, in order.
        name: what the progress bar calls them.

    Raises:
        DataError: no image column, no rows, an image that cannot be decoded, or images of several sizes.
    """
    total = sum(_rows(file) for file in files)
    if total == 0:
        raise DataError(f"{files[0].parent}: the parquet files of {name} hold no rows; expected images")
    images: NDArray[np.uint8] | None = None
    done = 0
    with task(f"decoding {name}", total) as advance:
        for place, pixels in _decoded(files):
            if images is None:
                images = np.empty((total, *pixels.shape), dtype=np.uint8)
            images[done] = _fit(pixels, images.shape[1:], place)
            done += 1
            advance()
    if images is None or done != total:
        raise DataError(f"{files[0].parent}: {done} images came out of {total} rows; the files changed meanwhile")
    return images


def _fit(pixels: NDArray[np.uint8], shape: tuple[int, ...], place: str) -> NDArray[np.uint8]:
    """Repeat a grey image of a colour set over its channels; refuse every other difference from `shape`."""
    if pixels.shape != shape and pixels.shape != (*shape[:-1], 1):
        raise DataError(
            f"{place} has (height, width, channels) {pixels.shape} and the first image has {shape}; "
            "resize the images to one size and mode first"
        )
    return pixels


def _decoded(files: Sequence[Path]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield (where it stood, pixels) of every image, in order."""
    for file in files:
        with _reading(file) as source:
            column = _require(file, source.schema_arrow.names, *IMAGE_COLUMNS)
            row = 0
            for batch in source.iter_batches(batch_size=_CHUNK, columns=[column]):
                encoded = _encoded(file, batch.column(0))
                jobs = [(f"image {row + i} of {file}", each) for i, each in enumerate(encoded)]
                yield from zip((place for place, _ in jobs), _decode_all(jobs), strict=True)
                row += len(jobs)


def _decode_all(jobs: Sequence[tuple[str, bytes | None]]) -> Sequence[NDArray[np.uint8]]:
    heavy = sum(len(data or b"") for _, data in jobs) >= _THREADS_PAY_FROM_BYTES * len(jobs)
    if not heavy:
        return [_decode(job) for job in jobs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_decode, jobs))


def _decode(job: tuple[str, bytes | None]) -> NDArray[np.uint8]:
    place, data = job
    if not data:
        raise DataError(f"{place} holds no bytes; expected an encoded image such as PNG or WebP")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{place} cannot be decoded ({error}); fetch the file again") from error
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{place} has mode {image.mode}; expected 8 bits per channel")
    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _encoded(file: Path, column: Any) -> list[bytes | None]:
    """Return the encoded bytes of one column chunk: plain binary, or a struct with a field ``bytes``."""
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = column.field("bytes")
        kind = column.type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{file}: images are stored as {kind}; expected bytes of encoded images")
    encoded: list[bytes | None] = column.to_pylist()
    return encoded


def _require(file: Path, names: Sequence[str], *wanted: str) -> str:
    """Return the one column of `names` that is among `wanted`."""
    found = [name for name in wanted if name in names]
    if len(found) != 1:
        options = " or ".join(f"'{name}'" for name in wanted)
        raise DataError(f"{file} has the columns {', '.join(names)}; expected one of them to be {options}")
    return found[0]


def _rows(file: Path) -> int:
    with _reading(file) as source:
        count: int = source.metadata.num_rows
    return count


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """Open a parquet file; what pyarrow finds wrong with it becomes a `DataError`."""
    try:
        with pq.ParquetFile(file) as source:
            yield source
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a complete parquet file ({error}); fetch it again") from error
