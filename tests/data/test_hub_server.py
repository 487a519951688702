"""Does the Hub path work for real? huggingface_hub talks to a small server on loopback that answers as the Hub does.

Runs in processes of their own, since huggingface_hub reads HF_ENDPOINT when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from .conftest import encode, make_pixels, write_parquet

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import sys
from geoquant.data import load_images
from geoquant.errors import GeoquantError
for asked in sys.argv[1:]:
    try:
        data = load_images(*asked.split(":"))
        print("found", data.name, data.split, data.images.shape, data.images.astype(int).sum(), data.labels.tolist())
    except GeoquantError as error:
        print(type(error).__name__, error)
"""


class Repository(BaseHTTPRequestHandler):
    """The parts of the Hub's API that a snapshot of a data set needs."""

    name: ClassVar[str] = "uoft-cs/cifar10"
    files: ClassVar[dict[str, bytes]] = {}
    fetched: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/datasets/{self.name}/tree/"):
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in self.files.items()
            ]
            self.answer(200, json.dumps(tree).encode(), "application/json")
        elif path.startswith(f"/api/datasets/{self.name}"):
            siblings = [{"rfilename": file} for file in self.files]
            info = {"id": self.name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            self.answer(200, json.dumps(info).encode(), "application/json")
        elif path.startswith(f"/datasets/{self.name}/resolve/"):
            file = path.split("/resolve/")[1].partition("/")[2]
            if self.command == "GET":
                self.fetched.append(file)
            self.answer(200, self.files[file], "application/octet-stream")
        else:
            self.answer(404, b"{}", "application/json", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, code: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        facts = {"Content-Type": kind, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}
        facts["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
        for key, value in {**facts, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    pixels = make_pixels(6)
    for split, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        file = tmp_path / "hub" / "plain_text" / f"{split}-00000-of-00001.parquet"
        write_parquet(file, [encode(each) for each in pixels[rows]], range(*rows.indices(6)))
        Repository.files[f"plain_text/{file.name}"] = file.read_bytes()
    Repository.files["README.md"] = b"# a card"
    Repository.fetched.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Repository)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def load(endpoint: str, home: Path, *asked: str) -> list[str]:
    """Load each ``name:split`` in a fresh process; return what it printed, one line each."""
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and not key.startswith("HF_")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *asked], env={**kept, **settings}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_fetch_read_and_read_again_without_the_server(endpoint, tmp_path):
    wanted = f"found cifar10 test (2, 5, 6, 3) {make_pixels(6)[4:].astype(int).sum()} [4, 5]"
    found, unknown = load(endpoint, tmp_path, "cifar10:test", "nobody/nothing:test")
    assert found == wanted
    assert Repository.fetched == ["plain_text/test-00000-of-00001.parquet"]
    assert unknown.startswith(
        "DataError cannot fetch 'nobody/nothing' from the Hugging Face Hub (RepositoryNotFoundError"
    )

    nobody = "http://127.0.0.1:9"
    again, other_split, never_fetched = load(nobody, tmp_path, "uoft-cs/cifar10:test", "cifar10:train", "mnist:train")
    assert again == wanted
    for line, name in ((other_split, "cifar10"), (never_fetched, "mnist")):
        assert line.startswith("DataError ")
        assert f"set GEOQUANT_DATA_DIR to a folder that holds {name}/train-*.parquet" in line
