"""Two GPUs: what ranks compute over NCCL in bf16, beside one; each case of ``support.ranks_on_gpus``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CASES = ("attention_over_ranks", "context_parallel", "tensor_parallel", "failure")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What failed, or "", of every case on every rank."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    folder = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [*launch, str(ROOT / "tests" / "support" / "ranks_on_gpus.py"), str(folder), *CASES]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_on_two_gpus(case, found):
    assert [on_rank.get(case, "did not end") for on_rank in found] == ["", ""]
