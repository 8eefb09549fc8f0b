"""The CUDA library compiles where nvcc is, and a kernel that ptxas had to slow down fails the build."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sa_compile.kernels import choice

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "cmake" / "check_ptxas.py"
CLEAN = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
# Bindings, work list and one source of each kind of kernel; all kernels take several minutes.
OBJECTS = (
    "_C_cuda.dir/kernels/csrc/block_sparse_attention/cuda_binding.cu.o",
    "_C_cuda.dir/kernels/csrc/block_sparse_attention/cuda/schedule.cu.o",
    "_C_cuda.dir/kernels/csrc/shared/cuda/visible_blocks.cu.o",
    "_C_cuda.dir/kernels/csrc/select_adaptive/cuda_binding.cu.o",
    "_C_cuda.dir/csrc/block_sparse_attention/head_dim_128_128.cu.o",
    "_C_cuda.dir/csrc/block_sparse_attention/head_dim_512_512.cu.o",
    "_C_cuda.dir/csrc/select_adaptive/head_dim_128_128.cu.o",
    "_C_cuda.dir/kernels/csrc/select_budget/cuda_binding.cu.o",
    "_C_cuda.dir/kernels/csrc/select_budget/cuda/bits.cu.o",
    "_C_cuda.dir/kernels/csrc/select_budget_rest/cuda/means.cu.o",
    "_C_cuda.dir/kernels/csrc/select_budget_rest/cuda/values.cu.o",
    "_C_cuda.dir/csrc/select_budget/head_dim_128_128.cu.o",
)


@pytest.mark.parametrize(
    "said, status",
    [
        pytest.param(CLEAN, 0, id="clean"),
        pytest.param("(C7510) Potential Performance Loss: wgmma serialized", 1, id="serialised products"),
        pytest.param(CLEAN.replace("0 bytes spill stores", "26 bytes spill stores"), 1, id="spilled stores"),
        pytest.param(CLEAN.replace("0 bytes spill loads", "8 bytes spill loads"), 1, id="spilled loads"),
    ],
)
def test_what_ptxas_says_decides_the_build(said, status):
    compiler = [sys.executable, "-c", f"print({said!r})"]
    run = subprocess.run([sys.executable, str(CHECK), *compiler], capture_output=True, text=True)
    assert run.returncode == status
    assert ("check_ptxas: " in run.stderr) == bool(status)


def test_the_compilers_own_failure_is_passed_on():
    compiler = [sys.executable, "-c", "raise SystemExit(7)"]
    assert subprocess.run([sys.executable, str(CHECK), *compiler], capture_output=True).returncode == 7


def tool(name):
    """The path of a program, beside this Python first: the system's cmake may be too old; or skips."""
    path = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    return path or pytest.skip(f"needs {name}")


def configure(build, archs):
    """Runs cmake's configuration; skips without the tools."""
    tool("nvcc")
    if importlib.util.find_spec("cutlass_library") is None:
        pytest.skip("needs CUTLASS's headers: pip install --no-deps nvidia-cutlass==4.2.0.0")
    command = [tool("cmake"), "-G", "Ninja", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
    settings = [
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DSAMPLEATTN_CUDA_ARCHS={archs}",
    ]
    return subprocess.run([*command, *settings], capture_output=True, text=True)


def test_bindings_work_list_and_a_kernel_of_each_kind_compile(tmp_path):
    configured = configure(tmp_path, "90a")
    assert configured.returncode == 0, configured.stderr
    objects = [f"CMakeFiles/{name}" for name in OBJECTS]
    built = subprocess.run(
        [tool("ninja"), "-C", str(tmp_path), "-j", "2", *objects], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout


def test_bindings_use_no_macro_that_the_oldest_torch_lacks():
    """The build says torch >= 2.11; its headers, unlike those that are here, have no such macro."""
    csrc = ROOT / "kernels" / "csrc"
    sources = [path for kind in ("*.h", "*.cu", "*.cpp") for path in csrc.rglob(kind)]
    assert not [str(path) for path in sources if "STABLE_TORCH_ERROR_CODE_CHECK(" in path.read_text()]


def test_calls_are_sent_to_the_head_dims_that_are_compiled():
    text = (ROOT / "cmake" / "cuda.cmake").read_text()
    for op, chosen in (
        ("block_sparse_attention", choice.CUDA_HEAD_DIMS),
        ("block_mean_attention", choice.CUDA_MEAN_HEAD_DIMS),
        ("select_adaptive", choice.CUDA_ADAPTIVE_HEAD_DIMS),
        ("select_peaks", choice.CUDA_ADAPTIVE_HEAD_DIMS),
    ):
        (line,) = re.findall(rf"^sampleattn_head_dims\({op} (.*)\)$", text, re.M)
        assert [tuple(map(int, dims.split(","))) for dims in line.split()] == list(chosen), op


@pytest.mark.parametrize("archs", ["80", "80,90a", "90"])
def test_an_architecture_without_kernels_is_named(archs, tmp_path):
    configured = configure(tmp_path, archs)
    assert configured.returncode != 0
    assert "must be 90a" in configured.stderr and f"got '{archs}'" in configured.stderr
