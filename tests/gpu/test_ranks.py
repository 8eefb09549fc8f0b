"""Two GPUs: what ranks compute over NCCL in bf16, beside one; each case of ``support.ranks_on_gpus``."""

import json

import pytest
import torch
from support.ranks import TESTS, torchrun

CASES = ("attention_over_ranks", "context_parallel", "tensor_parallel", "failure")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What failed, or "", of every case on every rank."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(2, str(TESTS / "support" / "ranks_on_gpus.py"), str(folder), *CASES)
    written = [folder / f"{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in written), done.stderr[-20000:]
    return [json.loads(file.read_text()) for file in written]


@pytest.mark.parametrize("case", CASES)
def test_on_two_gpus(case, found):
    assert [on_rank.get(case, "did not end") for on_rank in found] == ["", ""]
