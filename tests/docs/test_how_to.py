"""The code of the how-to pages runs as it stands, and prints what the pages say, up to the digits."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("how-to-cnn", "how-to-language-model", "how-to-training-loop")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shape(text: str) -> list[str]:
    """Return the lines with every number as ``#``: machines differ in the last digits."""
    return [re.sub(r"\d+(?:\.\d+)?", "#", line).strip() for line in text.strip().splitlines()]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty working folder, one thread, and torch's generator as it was."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_runs_and_prints_what_the_page_says(page: str, alone: None) -> None:
    source = DOCS / f"{page}.md"
    text = source.read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": page}
    said, runs = "", 0
    for block in BLOCK.finditer(text):
        language, body = block.groups()
        if language == "python":
            before = text[: block.start(2)].count("\n")
            out = StringIO()
            with redirect_stdout(out):
                exec(compile("\n" * before + body, str(source), "exec"), names)
            said, runs = out.getvalue(), runs + 1
        elif language == "text":
            wanted, found = shape(body), shape(said)
            assert found[: len(wanted)] == wanted
    assert runs == text.count("```python") > 0
