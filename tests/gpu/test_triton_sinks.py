"""Triton's selections beside attention sinks, against the oracles, on a GPU or under the interpreter."""

from __future__ import annotations

import pytest
import torch
from support.budget_oracle import assert_rest_equals_the_oracle, near_a_bound
from support.implementations import triton

from sa_compile.kernels.select_adaptive import reference as adaptive_reference
from sa_compile.kernels.select_adaptive.op import Arguments as Adaptive
from sa_compile.kernels.select_budget import reference as budget_reference
from sa_compile.kernels.select_budget_rest.op import Arguments as Rest
from sa_compile.kernels.shared import blocks

# q_len, kv_len, q_offset, block_q, block_k
CASES = {
    "whole_blocks": (128, 128, 0, 32, 16),
    "ragged": (101, 101, 0, 32, 32),
    "second_chunk_of_two_words": (50, 650, 597, 64, 16),
    "negative_offset": (90, 60, -20, 16, 16),
}


@pytest.mark.parametrize("one", [False, True], ids=["a-head", "one"])
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("name", CASES)
def test_selection_with_sinks(name: str, padded: bool, one: bool, triton_device: str) -> None:
    from sa_compile.kernels.select_adaptive import triton as adaptive
    from sa_compile.kernels.select_budget import triton as budget_triton
    from sa_compile.kernels.select_budget_rest import triton as rest_triton

    q_len, kv_len, q_offset, block_q, block_k = CASES[name]
    torch.manual_seed(0)
    query = 2 * torch.randn(2, 2, q_len, 24, device=triton_device)
    key, value = torch.randn(2, 2, 1, kv_len, 24, device=triton_device)
    segment = None
    if padded:
        begin = torch.tensor([[17], [40]], device=triton_device)
        segment = torch.where(torch.arange(kv_len, device=triton_device) < begin, -1, 0).int()
        key = key.masked_fill((segment < 0)[:, None, :, None], float("nan"))
    sinks = torch.tensor([2.0] if one else [-1.0, 4.0], device=triton_device)
    where = (segment, 0.2, q_offset, block_q, block_k)
    n_key_blocks = -(-kv_len // block_k)
    terms = triton.block_representatives(key, segment, block_k, 5)
    given = Adaptive(query, key, *terms, *where, 0.1, True, 2, 0, 1, sinks)
    squares, *_ = adaptive_reference.squared_shares(given, adaptive_reference.byte_product)
    exact = adaptive_reference.select_adaptive(given, adaptive_reference.byte_product)
    near = (squares - 0.01).abs() <= 4e-3 * 0.01
    kept = blocks.unpack_bits(adaptive.select_adaptive(given), n_key_blocks)
    assert torch.equal(kept | near, exact | near)

    shape = (-(-q_len // block_q), n_key_blocks)
    mask = blocks.pack_bits(torch.rand(1, 1, *shape, device=triton_device) < 0.1)
    rest = Rest(query, key, value, mask, *where, 0.1, 0.2, 8, True, 1, 1, sinks)
    budget = rest.of_budget
    near = near_a_bound(budget, 2e-3)
    kept = blocks.unpack_bits(budget_triton.select_budget(budget), n_key_blocks)
    assert torch.equal(kept | near, budget_reference.select_budget(budget) | near)
    assert_rest_equals_the_oracle(rest_triton.select_budget_rest(rest), rest, near=2e-3, atol=1e-3)
