"""The op on the device: ``select_budget``'s kernels, and products of what is left out with mean values.

Mean values are computed once, fp32. No host synchronisation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..select_budget.triton import Rest, select_and_rest
from ..shared.shapes import ceil_div
from ..shared.triton import batch_stride, readable, tile_dim
from .op import Arguments, new_rest

TILE_Q = 64  # query blocks of a tile
TILE_K = 32  # key blocks that a tile takes at a time
TILE_COLUMNS = 64  # of values


@triton.jit
def _mean_values(
    value,
    key_segment,
    means,  # fp32 [B * Hkv, n_key_blocks, Dv]
    v_batch,
    v_head,
    v_row,
    segment_batch,
    kv_heads,
    kv_len,
    n_key_blocks,
    VALUE_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
):
    block = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // kv_heads, batch_head % kv_heads
    index = block * BLOCK_K + tl.arange(0, BLOCK_K)
    dim = tl.arange(0, TILE_DIM)
    valid = index < kv_len
    if HAS_SEGMENT:
        valid = valid & (tl.load(key_segment + batch * segment_batch + index, mask=valid, other=-1) == 0)
    rows = value + batch * v_batch + head * v_head + index.to(tl.int64)[:, None] * v_row
    values = tl.load(rows + dim[None, :], mask=valid[:, None] & (dim < VALUE_DIM)[None, :], other=0.0)
    mean = tl.sum(values.to(tl.float32), 0) / tl.maximum(tl.sum(valid.to(tl.float32), 0), 1.0)
    mean = tl.where(tl.abs(mean) < float("inf"), mean, 0.0)
    at = (batch_head * n_key_blocks + block) * VALUE_DIM
    tl.store(means + at + dim, mean, mask=dim < VALUE_DIM)


@triton.jit
def _add_up(
    left_out,  # fp32 [B * Hq, query blocks of the batch, n_key_blocks]
    means,  # fp32 [B * Hkv, n_key_blocks, Dv]
    rest_value,  # fp32 [B * Hq, n_query_blocks, Dv]
    group,
    first_query_block,
    query_blocks,  # of this batch
    n_query_blocks,
    n_key_blocks,
    VALUE_DIM: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    batch_head = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q)
    column = tl.program_id(2) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    exists = (block < query_blocks)[:, None]
    shares = left_out + (batch_head * query_blocks + block)[:, None] * n_key_blocks
    means += batch_head // group * n_key_blocks * VALUE_DIM + column[None, :]
    total = tl.zeros([TILE_Q, TILE_COLUMNS], dtype=tl.float32)
    for first in range(0, n_key_blocks, TILE_K):
        j = first + tl.arange(0, TILE_K)
        share = tl.load(shares + j[None, :], mask=exists & (j < n_key_blocks)[None, :], other=0.0)
        seen = (j < n_key_blocks)[:, None] & (column < VALUE_DIM)[None, :]
        mean = tl.load(means + j[:, None].to(tl.int64) * VALUE_DIM, mask=seen, other=0.0)
        total = tl.dot(share, mean, total, input_precision="tf32")
    at = (batch_head * n_query_blocks + first_query_block + block)[:, None] * VALUE_DIM + column[None, :]
    tl.store(rest_value + at, total, mask=exists & (column < VALUE_DIM)[None, :])


def mean_values(a: Arguments) -> Tensor:
    """fp32 [B * Hkv, n_key_blocks, Dv]: of valid keys' values; what is not finite counts as 0."""
    batch, kv_heads, kv_len, value_dim = a.value.shape
    value, n_key_blocks = readable(a.value), ceil_div(kv_len, a.block_k)
    means = value.new_empty((batch * kv_heads, n_key_blocks, value_dim), dtype=torch.float32)
    if means.numel() == 0:
        return means
    _mean_values[(n_key_blocks, batch * kv_heads)](
        value,
        a.key_segment,
        means,
        *value.stride()[:3],
        batch_stride(a.key_segment),
        kv_heads,
        kv_len,
        n_key_blocks,
        VALUE_DIM=value_dim,
        TILE_DIM=tile_dim(value_dim),
        BLOCK_K=a.block_k,
        HAS_SEGMENT=a.key_segment is not None,
    )
    return means


def select_budget_rest(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op ``select_budget_rest``. One launch more a batch of query blocks, and one for mean values."""
    value, share, level = new_rest(a)
    means = mean_values(a)
    group, n_query_blocks, value_dim = a.query.shape[1] // a.key.shape[1], value.shape[2], value.shape[3]

    def take(left_out: Tensor, first: int) -> None:
        heads, query_blocks, n_key_blocks = left_out.shape
        _add_up[(ceil_div(query_blocks, TILE_Q), heads, ceil_div(value_dim, TILE_COLUMNS))](
            left_out,
            means,
            value,
            group,
            first,
            query_blocks,
            n_query_blocks,
            n_key_blocks,
            VALUE_DIM=value_dim,
            TILE_Q=TILE_Q,
            TILE_K=TILE_K,
            TILE_COLUMNS=TILE_COLUMNS,
        )

    mask = select_and_rest(a.of_budget, Rest(a.block_mask, share, level, take))
    return mask, value, share, level
