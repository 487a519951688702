"""Do pixels and labels come out exactly as they went in, and does a bad file say what is wrong with it?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from geoquant.data.parquet import read_images, read_labels
from geoquant.errors import DataError

from .conftest import encode, make_pixels, write_parquet


@pytest.mark.parametrize(
    ("column", "kind", "plain", "channels"),
    [("img", "WEBP", False, 3), ("image", "PNG", False, 1), ("image", "PNG", False, 3), ("img", "PNG", True, 3)],
)
def test_pixels_and_order_survive_shards_exactly(tmp_path, column, kind, plain, channels):
    pixels = make_pixels(11, channels=channels)
    encoded = [encode(each, kind) for each in pixels]
    files = [
        write_parquet(tmp_path / "a.parquet", encoded[:6], range(6), column, plain),
        write_parquet(tmp_path / "b.parquet", encoded[6:], range(6, 11), column, plain),
    ]
    assert np.array_equal(read_images(files, "x"), pixels)
    assert read_labels(files).tolist() == list(range(11))


def test_threads_keep_the_order(tmp_path):
    """Images above the threading threshold go through the pool; their order must not depend on who is first."""
    pixels = make_pixels(9, side=64)
    encoded = [encode(each) for each in pixels]
    assert len(encoded[0]) > 4096
    file = write_parquet(tmp_path / "a.parquet", encoded, range(9))
    assert np.array_equal(read_images([file], "x"), pixels)


def test_grey_image_in_a_colour_set_is_repeated_over_the_channels(tmp_path):
    colour, grey = make_pixels(1)[0], make_pixels(1, channels=1)[0]
    file = write_parquet(tmp_path / "a.parquet", [encode(colour), encode(grey)], [0, 1])
    assert np.array_equal(read_images([file], "x")[1], np.repeat(grey, 3, axis=-1))


def test_palette_images_become_their_colours(tmp_path):
    flat = np.zeros((4, 5, 3), np.uint8)
    flat[:2] = (250, 10, 20)
    file = tmp_path / "p.png"
    Image.fromarray(flat).quantize(2).save(file)
    out = read_images([write_parquet(tmp_path / "a.parquet", [file.read_bytes()], [0])], "x")
    assert np.array_equal(out[0], flat)


def deep_png(tmp_path: Path) -> bytes:
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(tmp_path / "deep.png")
    return (tmp_path / "deep.png").read_bytes()


def broken(tmp_path: Path, case: str) -> Path:
    """Write a file that is wrong in one way."""
    good = [encode(each) for each in make_pixels(6)]
    images = {
        "sizes": [*good, encode(make_pixels(1, side=7)[0])],
        "colour in grey": [encode(make_pixels(1, channels=1)[0]), good[0]],
        "not an image": [*good[:4], b"GIF89a not really"],
        "truncated image": [*good[:4], good[4][:60]],
        "no bytes": [*good[:4], None],
        "16 bit": [deep_png(tmp_path)],
        "no rows": [],
    }.get(case, good)
    column = "picture" if case == "column" else "img"
    file = write_parquet(tmp_path / "bad.parquet", images, range(len(images)), column)
    whole = file.read_bytes()
    if case == "text":
        pq.write_table(pa.table({"img": ["a"], "label": [0]}), file)
    elif case == "truncated file":
        file.write_bytes(whole[: len(whole) // 2])
    elif case == "overwritten pages":
        file.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    return file


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("sizes", r"image 6 of .* \(7, 8, 3\) and the first image has \(5, 6, 3\)"),
        ("colour in grey", r"image 1 of .*one size and mode"),
        ("not an image", r"image 4 of .* cannot be decoded"),
        ("truncated image", r"image 4 of .* cannot be decoded"),
        ("no bytes", r"image 4 of .* holds no bytes"),
        ("16 bit", r"image 0 of .*8 bits per channel"),
        ("column", r"columns picture, label; expected one of them to be 'image' or 'img'"),
        ("text", r"stored as string; expected bytes"),
        ("no rows", r"hold no rows"),
        ("truncated file", r"not a complete parquet file"),
        ("overwritten pages", r"not a complete parquet file"),
    ],
)
def test_bad_images_are_named(tmp_path, case, sentence):
    with pytest.raises(DataError, match=sentence):
        read_images([broken(tmp_path, case)], "x")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (pa.array([0, None]), "int64 with 1 missing"),
        (pa.array([0.0, 1.0]), "double with 0 missing; expected integers"),
        (pa.array([0, -1]), "label -1"),
    ],
)
def test_bad_labels_are_named(tmp_path, labels, sentence):
    pq.write_table(pa.table({"img": [b"", b""], "label": labels}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=sentence):
        read_labels([tmp_path / "a.parquet"])


def test_missing_label_column_is_named(tmp_path):
    pq.write_table(pa.table({"img": [b""], "fine_label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="columns img, fine_label; expected one of them to be 'label'"):
        read_labels([tmp_path / "a.parquet"])
