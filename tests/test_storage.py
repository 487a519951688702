"""Nobody ever reads half a file, and changed documents say so."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from geoquant import storage
from geoquant.errors import FileFormatError, OutputError


def fill_the_disk(target: Path) -> None:
    with storage.atomic_path(target) as temporary:
        temporary.write_text("half of the ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_document_round_trip(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "thing.json"
    storage.write_document(target, "thing", 2, {"a": [1.5, None], "ü": "ö"})
    assert storage.read_document(target, "thing", 2) == (2, {"a": [1.5, None], "ü": "ö"})


def test_every_single_character_edit_of_a_document_is_noticed(tmp_path: Path) -> None:
    target = tmp_path / "thing.json"
    storage.write_document(target, "thing", 1, {"value": 3})
    text = target.read_text()
    for place, character in enumerate(text):
        if character.isdigit():
            edited = text[:place] + str((int(character) + 1) % 10) + text[place + 1 :]
            target.write_text(edited)
            with pytest.raises(FileFormatError):
                storage.read_document(target, "thing", 99)


@pytest.mark.parametrize("keep", [0, 1, 10, 60])
def test_truncated_document_is_refused(tmp_path: Path, keep: int) -> None:
    target = tmp_path / "thing.json"
    storage.write_document(target, "thing", 1, {"value": 3})
    target.write_text(target.read_text()[:keep])
    with pytest.raises(FileFormatError, match="not a complete JSON"):
        storage.read_document(target, "thing", 1)


def test_newer_version_and_other_kind_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "thing.json"
    storage.write_document(target, "thing", 3, {})
    with pytest.raises(FileFormatError, match="version 3"):
        storage.read_document(target, "thing", 2)
    with pytest.raises(FileFormatError, match="not a geoquant plan"):
        storage.read_document(target, "plan", 3)
    target.write_text(json.dumps([1]))
    with pytest.raises(FileFormatError, match="list"):
        storage.read_document(target, "plan", 3)


def test_failure_while_writing_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "kept.txt"
    storage.write_text(target, "old")
    with pytest.raises(OutputError, match="No space left"):
        fill_the_disk(target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_failure_leaves_no_new_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        fill_the_disk(tmp_path / "a" / "b" / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_and_a_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="folder of that name"):
        storage.write_text(tmp_path / "taken", "text")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        storage.write_text(tmp_path / "file" / "inside", "text")


def test_new_files_are_readable_by_others(tmp_path: Path) -> None:
    storage.write_text(tmp_path / "shared.txt", "text")
    plain = tmp_path / "plain.txt"
    plain.write_text("text")
    assert (tmp_path / "shared.txt").stat().st_mode == plain.stat().st_mode


def fill_the_disk_with_a_folder(target: Path) -> None:
    with storage.atomic_folder(target) as temporary:
        (temporary / "a.txt").write_text("half of the ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with storage.atomic_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a.txt").write_text("all of it")
        (folder / "a.txt").chmod(0o600)  # as some libraries leave their files
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "a.txt").read_text() == "all of it"
    (tmp_path / "other.txt").write_text("as anybody writes it")
    assert (tmp_path / "deep" / "out" / "a.txt").stat().st_mode == (tmp_path / "other.txt").stat().st_mode
    with pytest.raises(OutputError, match="No space left"):
        fill_the_disk_with_a_folder(tmp_path / "other" / "out")
    assert not (tmp_path / "other").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with storage.atomic_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("new")
    with pytest.raises(OutputError, match="something of that name"):
        fill_the_disk_with_a_folder(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
