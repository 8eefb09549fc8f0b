"""The CUDA kernels' index arithmetic on the host: layouts, operands, walked runs, mask flags, items."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_lane_reads_what_its_product_needs_and_every_kept_run_is_walked(tmp_path):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path / "cuda_index"
    source = ROOT / "tests" / "kernels" / "csrc" / "cuda_index.cpp"
    include = ROOT / "kernels" / "csrc"
    subprocess.run(
        [compiler, "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{include}", str(source), "-o", str(program)],
        check=True,
    )
    run = subprocess.run([str(program)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
