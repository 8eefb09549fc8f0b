"""``sample_scores`` in one pass over the keys: scores, mask, softmax and both reductions.

The softmax of a sampled row needs its total over all keys, which only the end of a pass knows. So the pass
keeps one number per (row, key block), the log-sum-exp of the row's scores in the block; relative to the row's
total it is the probability mass of the block. No [rows, keys] tensor, and keys are read once per row tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.shapes import ceil_div
from ..shared.triton import (
    LOG2_E,
    batch_stride,
    ends_of_rows,
    floor_div,
    readable,
    row_end,
    sampled_row,
    tile_dim,
)
from .op import Arguments

ROWS = 128  # sampled rows of one program
# Of one program: few enough that short prompts fill the device, enough that long ones load queries seldom.
FEWEST_KEYS, MOST_KEYS = 2048, 8192
KEY_RANGES = 16
TOTAL_ROWS, TOTAL_BLOCKS = 32, 64
REDUCE_ROWS, REDUCE_BLOCKS = 64, 16


@triton.jit
def _block_log_sums(
    query,
    key,
    key_segment,
    ends,
    log_sums,  # [B * Hq, samples, n_key_blocks], base 2
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    segment_batch,
    ends_batch,
    q_heads,
    group,
    q_len,
    kv_len,
    q_offset,
    chunk_n,
    sample_rows,
    n_key_blocks,
    blocks_per_program,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch_head = tl.program_id(2).to(tl.int64)
    batch, head = batch_head // q_heads, batch_head % q_heads
    sample = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    end = row_end(ends, batch, ends_batch, q_len, HAS_SEGMENT)
    row, exists = sampled_row(sample, end, chunk_n, sample_rows)
    position = tl.where(exists, row + q_offset, -1)
    dim = tl.arange(0, TILE_DIM)
    q = tl.load(
        query + batch * q_batch + head * q_head + row[:, None].to(tl.int64) * q_row + dim[None, :],
        mask=exists[:, None] & (dim[None, :] < HEAD_DIM),
        other=0.0,
    )
    keys = key + batch * k_batch + (head // group) * k_head
    results = log_sums + (batch_head * chunk_n * sample_rows + sample[:, None]) * n_key_blocks
    last = tl.max(position, 0)
    begin = tl.program_id(1) * blocks_per_program
    for block in range(begin, tl.minimum(begin + blocks_per_program, n_key_blocks)):
        log_sum = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
        if block * BLOCK_K <= last:
            index = block * BLOCK_K + tl.arange(0, BLOCK_K)
            k = tl.load(
                keys + index[None, :].to(tl.int64) * k_row + dim[:, None],
                mask=(index[None, :] < kv_len) & (dim[:, None] < HEAD_DIM),
                other=0.0,
            )
            scores = tl.dot(q, k, input_precision=PRECISION) * scale_log2
            visible = (index[None, :] <= position[:, None]) & (index[None, :] < kv_len)
            if HAS_SEGMENT:
                segment = tl.load(key_segment + batch * segment_batch + index, mask=index < kv_len, other=-1)
                visible = visible & (segment == 0)[None, :]
            scores = tl.where(visible, scores, float("-inf"))
            highest = tl.max(scores, 1)
            offset = tl.where(highest == float("-inf"), 0.0, highest)
            log_sum = offset + tl.log2(tl.sum(tl.exp2(scores - offset[:, None]), 1))
        tl.store(results + block, log_sum[:, None], mask=(sample < chunk_n * sample_rows)[:, None])


@triton.jit
def _row_totals(log_sums, totals, samples, n_key_blocks, TILE_ROWS: tl.constexpr, TILE_BLOCKS: tl.constexpr):
    batch_head = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    rows = log_sums + (batch_head * samples + sample[:, None]) * n_key_blocks
    highest = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((TILE_ROWS,), tl.float32)
    for start in range(0, n_key_blocks, TILE_BLOCKS):
        block = start + tl.arange(0, TILE_BLOCKS)
        mask = (sample < samples)[:, None] & (block < n_key_blocks)[None, :]
        value = tl.load(rows + block[None, :], mask=mask, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(value, 1))
        offset = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(highest - offset) + tl.sum(tl.exp2(value - offset[:, None]), 1)
        highest = higher
    offset = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(totals + batch_head * samples + sample, offset + tl.log2(total), mask=sample < samples)


@triton.jit
def _reduce(
    log_sums,
    totals,
    ends,
    column_scores,
    slash_scores,
    ends_batch,
    q_heads,
    q_len,
    q_offset,
    chunk_n,
    sample_rows,
    n_key_blocks,
    BLOCK_K: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
):
    batch_head = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
    samples = chunk_n * sample_rows
    end = row_end(ends, batch_head // q_heads, ends_batch, q_len, HAS_SEGMENT)
    # Number `block` is a column and a slash.
    column = tl.zeros((TILE_BLOCKS,), tl.float32)
    slash = tl.zeros((TILE_BLOCKS,), tl.float32)
    column_rows = tl.zeros((TILE_BLOCKS,), tl.int32)
    slash_rows = tl.zeros((TILE_BLOCKS,), tl.int32)
    for start in range(0, samples, TILE_ROWS):
        sample = start + tl.arange(0, TILE_ROWS)
        row, exists = sampled_row(sample, end, chunk_n, sample_rows)
        position = tl.where(exists, row + q_offset, -1)
        own_block = floor_div(position, BLOCK_K)
        total = tl.load(totals + batch_head * samples + sample, mask=exists, other=float("-inf"))
        seen = exists & (total != float("-inf"))
        total = tl.where(seen, total, 0.0)
        rows = log_sums + (batch_head * samples + sample[:, None]) * n_key_blocks

        inside = seen[:, None] & (block < n_key_blocks)[None, :]
        value = tl.load(rows + block[None, :], mask=inside, other=float("-inf"))
        column += tl.sum(tl.exp2(value - total[:, None]), 0)
        column_rows += tl.sum((position[:, None] >= block[None, :] * BLOCK_K).to(tl.int32), 0)

        source = own_block[:, None] - block[None, :]
        inside = seen[:, None] & (source >= 0) & (source < n_key_blocks)
        value = tl.load(rows + source, mask=inside, other=float("-inf"))
        slash += tl.sum(tl.exp2(value - total[:, None]), 0)
        slash_rows += tl.sum((source >= 0).to(tl.int32), 0)
    mask = block < n_key_blocks
    index = batch_head * n_key_blocks + block
    tl.store(column_scores + index, column / tl.maximum(column_rows, 1), mask=mask)
    tl.store(slash_scores + index, slash / tl.maximum(slash_rows, 1), mask=mask)


def sample_scores(a: Arguments) -> tuple[Tensor, Tensor]:
    """The op ``sample_scores`` (see ``op``). Three launches, no host synchronisation."""
    batch, q_heads, q_len, head_dim = a.query.shape
    kv_heads, kv_len = a.key.shape[1:3]
    block_k = a.block_k
    n_key_blocks = ceil_div(kv_len, block_k)
    samples = a.chunk_n * a.sample_rows
    shape = (batch, q_heads, n_key_blocks)
    column, slash = (a.query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    if column.numel() == 0:
        return column, slash
    query, key = readable(a.query), readable(a.key)
    log_sums = query.new_empty((batch * q_heads, samples, n_key_blocks), dtype=torch.float32)
    totals = query.new_empty((batch * q_heads, samples), dtype=torch.float32)
    ends = ends_of_rows(a.key_segment, q_len, a.q_offset)
    keys_per_program = min(max(kv_len // KEY_RANGES, FEWEST_KEYS), MOST_KEYS)
    blocks_per_program = max(keys_per_program // block_k, 1)
    rows = min(ROWS, max(16, triton.next_power_of_2(samples)))
    _block_log_sums[(ceil_div(samples, rows), ceil_div(n_key_blocks, blocks_per_program), batch * q_heads)](
        query,
        key,
        a.key_segment,
        ends,
        log_sums,
        *query.stride()[:3],
        *key.stride()[:3],
        batch_stride(a.key_segment),
        batch_stride(ends),
        q_heads,
        q_heads // kv_heads,
        q_len,
        kv_len,
        a.q_offset,
        a.chunk_n,
        a.sample_rows,
        n_key_blocks,
        blocks_per_program,
        a.scale * LOG2_E,
        HEAD_DIM=head_dim,
        TILE_DIM=tile_dim(head_dim),
        TILE_ROWS=rows,
        BLOCK_K=block_k,
        HAS_SEGMENT=a.key_segment is not None,
        PRECISION="ieee",
        num_warps=4,
        num_stages=2,
    )
    _row_totals[(ceil_div(samples, TOTAL_ROWS), batch * q_heads)](
        log_sums, totals, samples, n_key_blocks, TILE_ROWS=TOTAL_ROWS, TILE_BLOCKS=TOTAL_BLOCKS
    )
    _reduce[(ceil_div(n_key_blocks, REDUCE_BLOCKS), batch * q_heads)](
        log_sums,
        totals,
        ends,
        column,
        slash,
        batch_stride(ends),
        q_heads,
        q_len,
        a.q_offset,
        a.chunk_n,
        a.sample_rows,
        n_key_blocks,
        BLOCK_K=block_k,
        TILE_ROWS=REDUCE_ROWS,
        TILE_BLOCKS=REDUCE_BLOCKS,
        HAS_SEGMENT=a.key_segment is not None,
    )
    return column, slash
