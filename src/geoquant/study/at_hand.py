"""Which data and weights are on this machine? Studies ask before they promise a cell."""

from __future__ import annotations

import os
from pathlib import Path

from geoquant.data.hub import split_files
from geoquant.errors import DataError

DATA, WEIGHTS = "GEOQUANT_DATA_DIR", "GEOQUANT_WEIGHTS_DIR"


def at_hand(name: str) -> bool:
    """Say whether an image set lies in the local mirror; digits always do. The Hub is not asked.

    >>> at_hand("digits"), at_hand("no such set")
    (True, False)
    """
    mirror = os.environ.get(DATA)
    if name == "digits" or mirror is None:
        return name == "digits"
    folder = Path(mirror).expanduser() / name
    try:
        return folder.is_dir() and all(split_files(folder, split) for split in ("train", "test"))
    except DataError:
        return False


def missing_data(name: str) -> str | None:
    """Return why an image set cannot be used here, or None.

    >>> missing_data("digits") is None
    True
    """
    return None if at_hand(name) else f"the image set {name} is not below ${DATA}"


def weights_file(name: str) -> Path | None:
    """Return a file or folder of pretrained weights, None where it is not at hand."""
    place = os.environ.get(WEIGHTS)
    path = None if place is None else Path(place).expanduser() / name
    return path if path is not None and path.exists() else None


def missing_weights(name: str) -> str | None:
    """Return why pretrained weights cannot be used here, or None."""
    return None if weights_file(name) is not None else f"the weights {name} are not below ${WEIGHTS}"
