"""GPU tests skip without a CUDA device; the Triton ones also run on the CPU with TRITON_INTERPRET=1."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def cuda() -> str:
    """The device name "cuda"; skips without one."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


@pytest.fixture
def triton_device() -> str:
    """Where Triton kernels run: "cuda", or "cpu" under the interpreter; skips without Triton."""
    pytest.importorskip("triton")
    if INTERPRETED:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")
    return "cuda"
