"""Context parallel on gloo: every case of ``support.context_ranks`` on two ranks, and some on four."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ON_TWO = (
    *(
        "lengths",
        "compiled",
        "left_padding",
        "right_padding",
        "windows",
        "sinks",
        "generate",
        "generate_compiled",
    ),
    *(
        "static_cache",
        "second_turn",
        "stats",
        "refusals",
        "soft_caps",
        "other_prompts",
        "local_order",
        "forgotten",
        "failure",
    ),
)
ON_FOUR = ("lengths", "left_padding", "generate", "stats", "tensor_parallel_inside")


def launched(ranks, cases, folder):
    """What failed, or "", of every case on every rank."""
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    command = [*launch, str(ROOT / "tests" / "support" / "context_ranks.py"), str(folder), *cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launched(2, ON_TWO, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return launched(4, ON_FOUR, tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("case", ON_TWO)
def test_on_two_ranks(case, two):
    assert [found[case] for found in two] == [""] * 2, next(filter(None, (found[case] for found in two)), "")


@pytest.mark.parametrize("case", ON_FOUR)
def test_on_four_ranks(case, four):
    assert [found[case] for found in four] == [""] * 4, next(
        filter(None, (found[case] for found in four)), ""
    )
