"""Two processes under torchrun decide alike, with whole weights (DDP) and with sharded ones (FSDP2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

WORKER = Path(__file__).parents[1] / "training_worker.py"

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


def both_ranks(kind: str, folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(WORKER), kind, str(folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_ddp_ranks_decide_alike_and_hold_the_same_weights(tmp_path: Path):
    one, other = both_ranks("ddp", tmp_path)
    assert one["changes"] == other["changes"]
    assert any(change["step"] > 1 for change in one["changes"])
    assert one["weights"] == other["weights"]
    assert one["kept"] == other["kept"]
    assert one["losses"] != other["losses"]


def test_fsdp_ranks_decide_alike_also_on_what_one_of_them_sees(tmp_path: Path):
    one, other = both_ranks("fsdp", tmp_path)
    assert one["changes"] == other["changes"]
    assert one["weights"] == other["weights"]
    assert one["anomalies"] == other["anomalies"] == [7]
    assert "sharded" in one["refused"]
    assert one["losses"] != other["losses"]
