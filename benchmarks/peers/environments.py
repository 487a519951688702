"""One virtual environment per peer, outside this tree, with pinned versions.

    python benchmarks/peers/environments.py --folder peers modelopt mct

A CPU build of torch is enough and small; where pip would choose another, say where one is with pip's own settings
(PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS). An environment that is complete is left alone. A peer that does not install is
reported with pip's last words, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"  # for language models
COMMON = ("safetensors==0.8.0", "numpy==2.4.6")
PEERS: dict[str, tuple[str, ...]] = {
    # ModelOpt imports requests and huggingface_hub without asking for them.
    "modelopt": ("nvidia-modelopt==0.47.0", "requests==2.34.2", "huggingface_hub==2.4.0", TRANSFORMERS),
    "mct": ("model-compression-toolkit==2.6.1", "mct-quantizers==1.7.0"),
    # quanto compiles a small extension the first time that it unpacks: ninja and a C++ compiler.
    "quanto": ("optimum-quanto==0.2.7",),
    "hqq": ("hqq==0.2.8.post1",),
    "brevitas": ("brevitas==0.13.4",),
    "auto_round": ("auto-round==0.16.1", TRANSFORMERS),
    "nncf": ("nncf==3.4.0", TRANSFORMERS),
}
# Wheels that would bring a torch of their own: their requirements are met already.
ALONE = {"mct": ("torchvision==0.29.2", "pillow==13.0.0")}
WARM_UP = {
    "quanto": "import torch, optimum.quanto; torch.ops.quanto.unpack(torch.zeros(4, dtype=torch.uint8), 4)",
}


def python_of(folder: Path, peer: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return folder / peer / "bin" / "python"


def make(folder: Path, peer: str) -> str | None:
    """Make one environment; return why it failed, None when it is there."""
    home = folder / peer
    wanted = json.dumps([TORCH, *COMMON, *PEERS[peer], *ALONE.get(peer, ())])
    mark = home / "installed.json"
    if mark.exists() and mark.read_text() == wanted:
        return None
    if not python_of(folder, peer).exists():
        venv.create(home, with_pip=True)
    command = [str(python_of(folder, peer)), "-m", "pip", "install", "--quiet", TORCH, *COMMON, *PEERS[peer]]
    steps = [command]
    if peer in ALONE:
        steps.append([*command[:5], "--no-deps", *ALONE[peer]])
    if peer in WARM_UP:
        steps.append([str(python_of(folder, peer)), "-c", WARM_UP[peer]])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
            return last[-1] if last else f"exit status {done.returncode}"
    mark.write_text(wanted)
    return None


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--folder", type=Path, required=True, help="where the environments go; not inside this tree")
    made.add_argument("peers", nargs="*", help=f"which ones (of {', '.join(PEERS)}); all when none is named")
    arguments = made.parse_args()
    unknown = sorted(set(arguments.peers) - set(PEERS))
    if unknown:
        made.error(f"no such peer: {', '.join(unknown)} (there are {', '.join(PEERS)})")
    root = Path(__file__).resolve().parents[2]
    folder = arguments.folder.resolve()
    if folder.is_relative_to(root):
        made.error(f"--folder {arguments.folder} is inside the tree; choose one outside")
    failures = {peer: reason for peer in arguments.peers or PEERS if (reason := make(folder, peer))}
    for peer, reason in failures.items():
        print(f"{peer}: {reason}", file=sys.stderr)
    (folder / "failures.json").write_text(json.dumps(failures, indent=1))


if __name__ == "__main__":
    main()
