"""What is done is never done again, what failed is kept until asked for, and only what changed runs anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from geoquant.errors import FileFormatError, OutputError, StudyError
from geoquant.study import Store, results, run_study
from study_toys import numbers, square, toy


def squares(study, folder: Path) -> list[int]:
    return [cell["square"] for cell in results(study, "quick", folder)]


def starts(folder: Path) -> dict[int, int]:
    return {int(file.stem): len(file.read_text().splitlines()) for file in folder.glob("*.starts")}


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def test_a_second_run_skips_everything(tmp_path: Path, marks: Path) -> None:
    study = toy(numbers(5, marks=str(marks)))
    first, second = (run_study(study, "quick", tmp_path) for _ in range(2))
    assert (first.ran, first.skipped, second.ran, second.skipped) == (5, 0, 0, 5)
    assert starts(marks) == dict.fromkeys(range(5), 1)
    assert squares(study, tmp_path) == [0, 1, 4, 9, 16]
    assert results(study, "quick", tmp_path)[3].rows == ({"power": 1, "value": 3}, {"power": 2, "value": 9})


def test_only_changed_cells_run_anew(tmp_path: Path, marks: Path) -> None:
    before, after = numbers(4, marks=str(marks)), numbers(4, marks=str(marks))
    after[2] = {"x": 7, "marks": str(marks)}
    run_study(toy(before), "quick", tmp_path)
    changed = toy(after)
    assert run_study(changed, "quick", tmp_path).ran == 1
    assert starts(marks) == {0: 1, 1: 1, 2: 1, 3: 1, 7: 1}
    assert squares(changed, tmp_path) == [0, 1, 49, 9]
    reordered = toy([dict(reversed(one.items())) for one in after])
    assert run_study(reordered, "quick", tmp_path).ran == 0


def test_a_new_version_runs_everything_anew(tmp_path: Path) -> None:
    run_study(toy(numbers(3)), "quick", tmp_path)
    assert run_study(toy(numbers(3), version=2), "quick", tmp_path).ran == 3
    assert squares(toy(numbers(3)), tmp_path) == [0, 1, 4]


def test_failed_cells_are_kept_and_retried_on_request(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    configurations = numbers(3)
    configurations[1] |= {"broken": str(broken)}
    study = toy(configurations)
    first = run_study(study, "quick", tmp_path)
    assert (first.ran, len(first.failed)) == (3, 1)
    assert first.failed[0][1] == "ArithmeticError: 1 cannot be squared today"
    outcome = Store(tmp_path).read(study.grid("quick")[1])
    assert outcome is not None
    assert outcome.error is not None
    assert "in square" in outcome.error.traceback
    broken.unlink()
    second = run_study(study, "quick", tmp_path)
    assert (second.ran, second.failed) == (0, first.failed)
    assert squares(study, tmp_path) == [0, 4]
    third = run_study(study, "quick", tmp_path, retry=True)
    assert (third.ran, third.skipped, third.failed) == (1, 2, ())
    assert squares(study, tmp_path) == [0, 1, 4]


def test_only_picks_by_label(tmp_path: Path) -> None:
    study = toy(numbers(12))
    assert run_study(study, "quick", tmp_path, only=r"x=1\d?$").ran == 3
    assert squares(study, tmp_path) == [1, 100, 121]
    with pytest.raises(StudyError, match="no cell of 'toy' matches 'y='; the first is 'x=0'"):
        run_study(study, "quick", tmp_path, only="y=")
    with pytest.raises(StudyError, match="no regular expression"):
        run_study(study, "quick", tmp_path, only="(")


def test_what_cannot_run_here_is_named(tmp_path: Path) -> None:
    study = toy(numbers(3), unavailable=lambda one: "x is even" if one["x"] % 2 == 0 else None)
    report = run_study(study, "quick", tmp_path)
    assert report.ran == 1
    assert report.unavailable == (("x=0", "x is even"), ("x=2", "x is even"))


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    study = toy(numbers(2))
    with Store(tmp_path).working("toy"), pytest.raises(StudyError, match="another run of the study 'toy'"):
        run_study(study, "quick", tmp_path)
    assert run_study(study, "quick", tmp_path).ran == 2


def test_processes_give_what_one_gives_and_survive_a_death(tmp_path: Path, marks: Path) -> None:
    configurations = [*numbers(4, marks=str(marks)), {"x": 4, "dies": True}, {"x": 5}, {"x": 6}]
    study = toy(configurations)
    report = run_study(study, "quick", tmp_path, jobs=2)
    assert report.failed == (("x=4 dies=true", "WorkerDied: its process ended with signal SIGKILL"),)
    assert squares(study, tmp_path) == [0, 1, 4, 9, 25, 36]
    assert starts(marks) == dict.fromkeys(range(4), 1)
    workers = {line for file in marks.glob("*.starts") for line in file.read_text().splitlines()}
    assert 1 <= len(workers) <= 2


def test_a_function_that_no_process_can_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be sent to another process"):
        run_study(toy(numbers(2), run=lambda one: square(one)), "quick", tmp_path, jobs=2)


def test_damaged_and_misplaced_files_are_named(tmp_path: Path) -> None:
    study = toy(numbers(2))
    run_study(study, "quick", tmp_path)
    store, (one, other) = Store(tmp_path), study.grid("quick")
    whole = store.path(one).read_text()
    store.path(one).write_text(whole.replace('"square": 0', '"square": 3'))
    with pytest.raises(FileFormatError, match="was changed"):
        run_study(study, "quick", tmp_path)
    store.path(one).write_text(store.path(other).read_text())
    with pytest.raises(FileFormatError, match=re.escape(other.key)):
        run_study(study, "quick", tmp_path)
    store.path(one).unlink()
    assert run_study(study, "quick", tmp_path).ran == 1
    assert store.path(one).read_text() != ""


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        run_study(toy(numbers(1)), "quick", tmp_path / "file")


def test_draws_do_not_depend_on_what_ran_before(tmp_path: Path) -> None:
    import torch

    def draw(_: object) -> dict[str, float]:
        return {"drawn": float(torch.rand(()))}

    study, state = toy(numbers(2), run=draw), torch.random.get_rng_state()
    run_study(study, "quick", tmp_path / "a")
    run_study(study, "quick", tmp_path / "b", only="x=1")
    forward, alone = (results(study, "quick", tmp_path / name) for name in "ab")
    assert forward[1]["drawn"] == alone[0]["drawn"] != forward[0]["drawn"]
    assert torch.equal(state, torch.random.get_rng_state())
