"""The CUDA kernel against the float64 oracle, over the grid of shapes and masks."""

from __future__ import annotations

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import BASE, GRID, POISON, Case

from sa_compile.kernels import cuda_library, ops

# Error bound: this many times the error of dense SDPA in the same precision.
FACTOR = 1.5
LSE_ERROR = 1e-3


@pytest.fixture
def sm90(cuda: str) -> str:
    """The device, if the CUDA library has kernels for it."""
    if cuda_library.attention_kernel(torch.device(cuda), torch.bfloat16, 128, 128, 128, 128) != "cuda_sm90":
        pytest.skip("needs the CUDA library and an sm_90 device")
    return cuda


def check(case: Case, device: str) -> None:
    poison_free_memory()
    seed = int(torch.empty((), dtype=torch.int64).random_().item() % 2**31)
    error, dense_error, lse_error = attention_cases.check(ops.block_sparse_attention_op, case, device, seed)
    assert error <= FACTOR * dense_error + 1e-7, f"seed {seed}"
    assert lse_error <= LSE_ERROR, f"seed {seed}"


def poison_free_memory() -> None:
    """Fill what the next outputs are allocated from with NaN: an element that nobody writes shows."""
    for elements in (1 << 14, 1 << 18, 1 << 22, 1 << 25):
        torch.full((elements,), POISON, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("block_k", [128, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", GRID)
def test_every_shape_and_mask(name: str, dtype: torch.dtype, block_k: int, sm90: str) -> None:
    check(GRID[name].with_(dtype=dtype, block_k=block_k), sm90)


@pytest.mark.parametrize("block_k", [128, 64])
@pytest.mark.parametrize("name", ["square", "ragged_bshd", "window", "left_padding", "packed", "few_blocks"])
@pytest.mark.parametrize("head_dims", [d for d in cuda_library.SM90_HEAD_DIMS if d != (128, 128)], ids=str)
def test_every_head_dim(head_dims: tuple[int, int], name: str, block_k: int, sm90: str) -> None:
    check(GRID[name].with_(head_dim=head_dims[0], head_dim_v=head_dims[1], block_k=block_k), sm90)


def test_scores_that_grow_along_the_keys_are_rescaled(sm90: str) -> None:
    case = BASE.with_(q_len=1024, k_len=1024, density=1.0)
    inputs = attention_cases.random_inputs(case, sm90, seed=0)
    inputs.key *= torch.linspace(0.1, 40, 1024, device=sm90)[:, None].bfloat16()
    for descending in (False, True):
        if descending:
            inputs.key, inputs.value = inputs.key.flip(2), inputs.value.flip(2)
        out, lse = ops.block_sparse_attention_op(*inputs.arguments(case))
        expected, expected_lse = attention_cases.oracle(inputs, case)
        assert attention_cases.relative_error(out, expected) < 1e-2
        assert (lse - expected_lse).abs().max() < 1e-2


def test_captured_in_a_graph_without_synchronising(sm90: str) -> None:
    case = BASE.with_(q_len=1000, k_len=1000)
    inputs = attention_cases.random_inputs(case, sm90, seed=1)
    out, _ = ops.block_sparse_attention_op(*inputs.arguments(case))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed, _ = ops.block_sparse_attention_op(*inputs.arguments(case))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in range(2):
        replayed.fill_(POISON)
        graph.replay()
        assert torch.equal(replayed, out)
