"""Kernels of ``block_sparse_attention`` on this machine, and how far from the oracle they may be."""

from __future__ import annotations

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import POISON, Case

from sa_compile.kernels import choice, ops
from sa_compile.kernels.choice import Call

ATTENTION_KERNELS = ("cuda_sm90", "triton")
# Error bound: this many times the error of dense SDPA in the same precision.
FACTOR = 1.5
LSE_ERROR = 1e-3


def skip_without(name: str) -> None:
    """Skips the test where the kernel cannot run; must be called inside ``preferring(name)``."""
    call = Call("block_sparse_attention", torch.device("cuda"), torch.bfloat16, (128, 128), 128, 128)
    if not choice.fits(name, call):
        pytest.skip(f"{name} needs its GPU and a CUDA library built with it")


def check(case: Case, device: str) -> None:
    """One case with fresh inputs on the preferred kernel; a failure names the seed."""
    poison_free_memory()
    seed = int(torch.empty((), dtype=torch.int64).random_().item() % 2**31)
    error, dense_error, lse_error = attention_cases.check(ops.block_sparse_attention_op, case, device, seed)
    assert error <= FACTOR * dense_error + 1e-7, f"seed {seed}"
    assert lse_error <= LSE_ERROR, f"seed {seed}"


def poison_free_memory() -> None:
    """Fill what the next outputs are allocated from with NaN: an element that nobody writes shows."""
    for elements in (1 << 14, 1 << 18, 1 << 22, 1 << 25):
        torch.full((elements,), POISON, device="cuda", dtype=torch.bfloat16)
