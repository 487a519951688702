"""Studies keep trained nets in one folder for all tests of a run, so that each is trained once."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOQUANT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "study-cache"))
