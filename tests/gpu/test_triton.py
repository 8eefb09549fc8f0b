"""The Triton kernels against the oracle and the PyTorch implementation, on a GPU or under the interpreter."""

from __future__ import annotations

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import GRID

from sa_compile.kernels import blocks, eager, reference, reference_adaptive

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


ADAPTIVE = {
    "whole_blocks": {"q_len": 128, "k_len": 128, "q_offset": 0, "block_q": 32, "block_k": 16},
    "ragged": {"q_len": 101, "k_len": 101, "q_offset": 0, "block_q": 32, "block_k": 32},
    "second_chunk_of_two_words": {"q_len": 50, "k_len": 650, "q_offset": 597, "block_q": 64, "block_k": 16},
    "negative_offset": {"q_len": 90, "k_len": 60, "q_offset": -20, "block_q": 16, "block_k": 16},
    "positions_past_the_keys": {"q_len": 120, "k_len": 64, "q_offset": 0, "block_q": 32, "block_k": 16},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_block_representatives_and_select_adaptive(
    name: str, padded: bool, dtype: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sa_compile.kernels.triton import adaptive

    q_len, k_len, q_offset, block_q, block_k = ADAPTIVE[name].values()
    torch.manual_seed(0)
    query = (2 * torch.randn(2, 2, q_len, 24, device=triton_device)).to(dtype)
    key = torch.randn(2, 1, k_len, 24, device=triton_device).to(dtype)
    key_segment = None
    if padded:
        begin = torch.tensor([[17], [40]], device=triton_device)
        key_segment = torch.where(torch.arange(k_len, device=triton_device) < begin, -1, 0).int()
        key = key.masked_fill((key_segment < 0)[:, None, :, None], float("nan"))
    found = adaptive.block_representatives(key, key_segment, block_k, 5)
    expected = reference_adaptive.block_representatives(key, key_segment, block_k, 5)
    assert torch.equal(found[0][:, :, 1:].double(), expected[0][:, :, 1:])
    rounding = 2.0**-11 if dtype == torch.float16 else 1e-6
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1.01 * rounding, atol=1e-6)
    for terms, exact in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(terms.double(), exact, rtol=1e-4, atol=1e-5)

    monkeypatch.setattr(adaptive, "SCRATCH_BYTES", 4 * 2 * 2 * block_q * 45 * 2)  # some query blocks a group
    where = (key_segment, 0.2, q_offset, block_q, block_k)
    for keep_sink, window in ((True, 2), (False, 1)):
        squares, _ = reference_adaptive.squared_shares(query, key, *found, *where, keep_sink, window)
        for tau in (0.0, 0.1, 0.4):
            rest = (*where, tau, keep_sink, window)
            bits = adaptive.select_adaptive(query, key, *found, *rest)
            kept = blocks.unpack_bits(bits, -(-k_len // block_k))
            near_tau = (squares - tau**2).abs() <= 1e-3 * tau**2
            exact = reference_adaptive.select_adaptive(query, key, *found, *rest)
            assert torch.equal(kept | near_tau, exact | near_tau)
