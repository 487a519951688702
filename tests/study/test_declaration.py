"""Cells are known by what they are told; every registered study keeps the promises of a study."""

from __future__ import annotations

import json

import pytest

from geoquant.errors import StudyError
from geoquant.study import PRESETS, STUDIES, Cell, Results, Study
from study_toys import numbers, square, toy


def test_keys_follow_configuration_name_and_version_and_nothing_else() -> None:
    key = Cell("toy", 1, {"a": 1, "b": [2, {"c": 3}]}).key
    assert Cell("toy", 1, {"b": [2, {"c": 3}], "a": 1}).key == key
    others = [
        Cell("toy", 2, {"a": 1, "b": [2, {"c": 3}]}),
        Cell("boy", 1, {"a": 1, "b": [2, {"c": 3}]}),
        Cell("toy", 1, {"a": 2, "b": [2, {"c": 3}]}),
        Cell("toy", 1, {"a": 1, "b": [{"c": 3}, 2]}),
        Cell("toy", 1, {"a": "1", "b": [2, {"c": 3}]}),
    ]
    assert len({key, *(other.key for other in others)}) == 6


def test_a_key_is_the_same_on_every_machine_and_day() -> None:
    """Committed results are found by their names; who changes how keys are made orphans them."""
    assert Cell("digits-depth", 1, {"net": "digits_cnn", "seed": 0, "layer": "head"}).key == "7eb3292994f8348dd931df3b"


def test_configurations_must_be_json() -> None:
    for value in ({1, 2}, float("nan"), object()):
        with pytest.raises(StudyError, match="not plain JSON"):
            toy([{"x": value}]).grid("quick")


def test_grids_name_each_cell_once_and_hold_some() -> None:
    with pytest.raises(StudyError, match="the cell x=1 twice"):
        toy([{"x": 1}, {"x": 2}, {"x": 1}]).grid("quick")
    with pytest.raises(StudyError, match="no cell in the preset quick"):
        toy([]).grid("quick")


@pytest.mark.parametrize("name", ["", "Toy", "../toy", "toy_1", "-toy", "to y"])
def test_names_are_folders(name: str) -> None:
    grids = dict.fromkeys(PRESETS, lambda: numbers(1))
    with pytest.raises(StudyError, match="cannot name a study"):
        Study(name, "t", "s", "q", grids, square)


def test_presets_are_complete() -> None:
    with pytest.raises(StudyError, match=r"has cells for \['quick'\]"):
        Study("toy", "t", "s", "q", {"quick": lambda: numbers(1)}, square)


@pytest.mark.parametrize("name", STUDIES.names())
def test_registered_studies_keep_their_promises(name: str) -> None:
    study = STUDIES[name]
    assert study.name == name
    for text in (study.title, study.source, study.question):
        assert text.strip()
    assert study.question.rstrip().endswith("?")
    sizes = [len(study.grid(preset)) for preset in PRESETS]
    assert sizes == sorted(sizes)
    for preset in PRESETS:
        for cell in study.grid(preset):
            assert json.loads(json.dumps(dict(cell.configuration))) == dict(cell.configuration)
        assert sum(study.resources(study.grid(preset)[0].configuration).values()) > 0
    assert study.run.__module__.startswith("geoquant.")
    assert study.claims


@pytest.mark.parametrize("name", STUDIES.names())
def test_claims_without_results_are_not_measured(name: str) -> None:
    """A report may be asked for at any time: nothing measured is no verdict, and no crash."""
    study = STUDIES[name]
    empty = Results((), study.command("quick"), "quick", 1)
    for claim in study.claims:
        assert claim(empty).verdict == "not measured"
