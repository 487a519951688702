"""Do the wheel and the sdist hold the whole package, and does each install and run on its own?

Run as ``python tests/check_packages.py dist``. Each artefact is installed without its dependencies into a fresh
environment that borrows those from the running one, and is tried from a folder where the sources cannot be seen.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDIST_MUST_HAVE = ("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml")
PROBE = """
import importlib.metadata, json, pathlib, geoquant
folder = pathlib.Path(geoquant.__file__).parent
files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
print(json.dumps([str(folder), geoquant.__version__, importlib.metadata.version("geoquant"), files]))
"""


def main(dist: Path) -> None:
    """Check the one wheel and the one sdist in `dist`."""
    wheel, sdist = _only(dist, "*.whl"), _only(dist, "*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        check_wheel_names(archive.namelist())
    with tarfile.open(sdist) as tar:
        check_sdist_names(tar.getnames())
    with tempfile.TemporaryDirectory() as folder:
        for artefact in (wheel, sdist):
            check_installed(artefact, Path(folder) / artefact.name)
            print(f"{artefact.name}: installed, imported, complete")


def _only(dist: Path, pattern: str) -> Path:
    found = list(dist.glob(pattern))
    _demand(len(found) == 1, f"{dist} holds {len(found)} files {pattern}; expected one")
    return found[0].resolve()


def _demand(holds: bool, complaint: str) -> None:
    if not holds:
        sys.exit(f"package check: {complaint}")


def check_wheel_names(names: Iterable[str]) -> None:
    """A wheel holds the package and its metadata, and nothing that would land beside it."""
    strays = [name for name in names if not re.match(r"geoquant(-[^/]+\.dist-info)?/", name)]
    _demand(not strays, f"the wheel holds {strays[:3]} outside the package")


def check_sdist_names(names: Iterable[str]) -> None:
    """An sdist can be built, tested and redistributed: sources, tests, licence."""
    held = {name.partition("/")[2] for name in names}
    wanted = {*SDIST_MUST_HAVE, *_tracked("src/geoquant"), *_tracked("tests"), *_tracked("docs")}
    _demand(wanted <= held, f"the sdist lacks {sorted(wanted - held)[:5]}")


def check_installed(artefact: Path, folder: Path) -> None:
    """Install `artefact` into a fresh environment in `folder` and try it there."""
    folder.mkdir()
    wheel = artefact if artefact.suffix == ".whl" else build_wheel(artefact, folder)
    place = folder / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel))
    packages = place / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")  # after its own, so its own win

    home, version, stated, files = json.loads(_run(str(python), "-c", PROBE, cwd=folder))
    _demand(Path(home).resolve().is_relative_to(place.resolve()), f"{artefact.name} was imported from {home}")
    _demand(version == stated == _version(), f"{artefact.name} says {version} and {stated}, the tree {_version()}")
    missing = {name.removeprefix("src/geoquant/") for name in _tracked("src/geoquant")} - set(files)
    _demand(not missing, f"{artefact.name} lacks {sorted(missing)[:5]}")
    _demand("py.typed" in files, f"{artefact.name} lacks py.typed")
    _run(str(place / "bin" / "geoquant"), "--help", cwd=folder)


def build_wheel(sdist: Path, folder: Path) -> Path:
    """Build a wheel from an sdist, as an installer would."""
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(sdist))
    return _only(folder, "*.whl")


def _tracked(folder: str) -> list[str]:
    """Return the files under `folder` that git knows."""
    return _run("git", "-C", str(ROOT), "ls-files", "--", folder).splitlines()


def _version() -> str:
    text = (ROOT / "src" / "geoquant" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return found[1] if found else "nothing"


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    _demand(done.returncode == 0, f"{' '.join(command)[:200]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
