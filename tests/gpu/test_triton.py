"""The Triton kernels against the oracle and the PyTorch implementation, on a GPU or under the interpreter."""

from __future__ import annotations

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import GRID

from sa_compile.kernels import eager, reference

# The interpreter multiplies bfloat16 wrongly, so lengths are small and dtypes are those that it knows.
ATTENTION = [
    "square",
    "ragged_bshd",
    "unaligned_offset",
    "negative_offset",
    "left_padding",
    "packed_sparse_batch",
]
SAMPLES = {
    "one_chunk": {"q_len": 100, "k_len": 260, "q_offset": 100, "chunk_n": 1, "sample_rows": 16},
    "two_chunks": {"q_len": 300, "k_len": 300, "q_offset": 0, "chunk_n": 2, "sample_rows": 32},
    "chunks_shorter_than_samples": {"q_len": 90, "k_len": 90, "q_offset": 0, "chunk_n": 4, "sample_rows": 32},
    "stride": {"q_len": 100, "k_len": 170, "q_offset": 70, "chunk_n": 25, "sample_rows": 1},
    "negative_offset": {"q_len": 90, "k_len": 60, "q_offset": -20, "chunk_n": 2, "sample_rows": 64},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", ATTENTION)
def test_block_sparse_attention(name: str, dtype: torch.dtype, triton_device: str) -> None:
    from sa_compile.kernels.triton import attention

    case = GRID[name].with_(
        dtype=dtype, head_dim=48, head_dim_v=32, block_q=32, block_k=64, heads=2, heads_kv=1
    )
    error, dense_error, lse_error = attention_cases.check(
        attention.block_sparse_attention, case, triton_device, seed=3
    )
    assert error <= 1.5 * dense_error + 1e-6
    assert lse_error <= 1e-3


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("name", SAMPLES)
def test_sample_scores_and_select_blocks(name: str, padded: bool, triton_device: str) -> None:
    from sa_compile.kernels.triton import sampling, selection

    sizes = SAMPLES[name]
    q_len, k_len, q_offset = sizes["q_len"], sizes["k_len"], sizes["q_offset"]
    torch.manual_seed(0)
    query = torch.randn(2, 2, q_len, 32, device=triton_device)
    key = torch.randn(2, 1, k_len, 32, device=triton_device)
    key_segment = None
    if padded:
        begin = torch.tensor([[17], [40]], device=triton_device)
        key_segment = torch.where(torch.arange(k_len, device=triton_device) < begin, -1, 0).int()
    sample = (0.2, q_offset, sizes["chunk_n"], sizes["sample_rows"], 16)
    scores = sampling.sample_scores(query, key, key_segment, *sample)
    for found, expected in zip(
        scores, reference.sample_scores(query, key, key_segment, *sample), strict=True
    ):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)

    for alphas in ((0.9, 0.9), (0.5, 0.2), (1.0, 0.3), (0.0, 0.0)):
        for block_q, keep_sink, window in ((16, True, 2), (64, False, 0)):
            rest = (q_len, k_len, q_offset, block_q, 16, *alphas, keep_sink, window)
            found = selection.select_blocks(*scores, key_segment, *rest)
            assert torch.equal(found, eager.select_blocks(*scores, key_segment, *rest))
