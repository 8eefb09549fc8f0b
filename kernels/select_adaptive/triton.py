"""The selection of method C on the device: ``select_adaptive``.

The selection scores a tile of query rows against a few landmarks of many key blocks at a time, so that the
largest of a block's group and the sum over groups are found in registers: no product is reduced across
columns. A row's shares need its total, which the end of the pass knows, so the pass stores one number per
(row, key block), the 2-norm of its keys' exponentials, and a second kernel turns them into bits. Query blocks
come in batches whose numbers fit in ``SCRATCH_BYTES``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..defaults import LANDMARK_GROUPS
from ..shared.grid import Grid, new_index
from ..shared.shapes import WORD_BITS
from ..shared.triton import (
    LOG2_E,
    batch_stride,
    block_stop,
    ends_of_rows,
    floor_div,
    holds_last_row,
    readable,
    row_end,
    tile_dim,
    visible_and_sinks,
)
from .op import Arguments

SCRATCH_BYTES = 256 << 20
TILE_BLOCKS = 32  # key blocks scored at a time
MARKS = 4  # landmarks of a group that one product scores: a block's columns lie in one thread's registers
LOWEST = -1e30  # below every score, and yet a number: differences from it are none of infinities


@triton.jit
def _log_sum(highest, total):
    offset = tl.where(highest == float("-inf"), 0.0, highest)
    return offset + tl.log2(total)


@triton.jit
def _exact_block(
    q, keys, key_segment, highest, total, block, position, dim, k_row, k_len, scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the exact scores of a key block to the rows' running totals."""
    index = block * BLOCK_K + tl.arange(0, BLOCK_K)
    exists = (index >= 0) & (index < k_len)
    k = tl.load(
        keys + index[None, :].to(tl.int64) * k_row + dim[:, None],
        mask=exists[None, :] & (dim < HEAD_DIM)[:, None],
        other=0.0,
    )
    visible = exists[None, :] & (index[None, :] <= position[:, None])
    if HAS_SEGMENT:
        segment = tl.load(key_segment + index, mask=exists, other=-1)
        visible = visible & (segment == 0)[None, :]
    scores = tl.dot(q, k, input_precision=PRECISION) * scale_log2
    scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    offset = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp2(highest - offset) + tl.sum(tl.exp2(scores - offset[:, None]), 1)


@triton.jit
def _score_blocks(
    query,
    key,
    representatives,
    log_weights,
    spreads,
    landmarks,  # int32 [B, Hkv, n]: how many the block has
    key_segment,
    ends,
    log_norms,  # fp32 [B * Hq, query blocks of the group, BLOCK_Q, n], base 2
    totals,  # fp32 [B * Hq, query blocks of the group, BLOCK_Q], base 2
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    segment_batch,
    ends_batch,
    heads,
    group,
    q_len,
    k_len,
    q_offset,
    first_query_block,
    n,
    members,
    last_rows,
    scale,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    MARKS: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    LOG2_E: tl.constexpr,
    LOWEST: tl.constexpr,
):
    q_block = first_query_block + tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    kv_head = batch * (heads // group) + head // group
    row = q_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    position = tl.where(row < q_len, row + q_offset, -1)
    dim = tl.arange(0, TILE_DIM)
    q = tl.load(
        query + batch * q_batch + head * q_head + row[:, None].to(tl.int64) * q_row + dim[None, :],
        mask=(row < q_len)[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    scale_log2 = scale * LOG2_E
    norm = tl.sum(q.to(tl.float32) * q.to(tl.float32), 1) * (0.5 * scale * scale_log2)
    end = row_end(ends, batch, ends_batch, q_len, HAS_SEGMENT)
    row_stop = block_stop(q_block * BLOCK_Q, end, q_len, BLOCK_Q)
    low = floor_div(q_block * BLOCK_Q + q_offset, BLOCK_K)
    high = floor_div(row_stop - 1 + q_offset, BLOCK_K)
    stop = tl.where(holds_last_row(row_stop, end, last_rows), 0, tl.minimum(high + 1, n))
    own = tl.minimum(tl.maximum(low, 0), stop)  # blocks from it on are scored exactly

    highest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    keys = key + batch * k_batch + (head // group) * k_head
    segments = key_segment + batch * segment_batch if HAS_SEGMENT else key_segment
    for exact in range(own, stop):
        highest, total = _exact_block(
            q, keys, segments, highest, total, exact, position, dim, k_row, k_len, scale_log2,
            HEAD_DIM, BLOCK_K, HAS_SEGMENT, PRECISION,
        )  # fmt: skip

    slot = (batch_head * tl.num_programs(0) + tl.program_id(0)) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    for start in range(0, own, TILE_BLOCKS):
        block = start + tl.arange(0, TILE_BLOCKS)
        scored = block < own
        column = tl.arange(0, MARKS * TILE_BLOCKS)
        of_block = start + column % TILE_BLOCKS
        of_column = representatives + (kv_head * members * n + of_block) * HEAD_DIM
        marks = tl.load(landmarks + kv_head * n + of_block, mask=of_block < own, other=0)
        # The mean first; of the landmarks, which weigh nothing and have no spread, only those that exist.
        place = kv_head * members * n + block
        weight = tl.load(log_weights + place, mask=scored, other=float("-inf")) * LOG2_E
        spread = tl.load(spreads + place, mask=scored, other=0.0)
        means = tl.load(
            representatives + place[None, :] * HEAD_DIM + dim[:, None],
            mask=scored[None, :] & (dim < HEAD_DIM)[:, None],
            other=0.0,
        )
        mean_scores = tl.dot(q, means, input_precision=PRECISION) * scale_log2
        number = tl.maximum(weight, 0.0)[None, :]  # log of the keys that the mean stands for, if any
        boost = tl.minimum(norm[:, None] * spread[None, :], number)
        mean_scores = mean_scores + boost + weight[None, :]
        block_highest = tl.maximum(mean_scores, LOWEST)
        block_total = tl.exp2(mean_scores - block_highest)
        block_squares = block_total * block_total * tl.exp2(tl.minimum(2 * boost - number, 0.0))
        for landmark_group in range(1, tl.minimum(GROUPS, members - 1) + 1):
            most = tl.full((BLOCK_Q, TILE_BLOCKS), float("-inf"), tl.float32)
            for first_mark in range(landmark_group, members, MARKS * GROUPS):
                mark = first_mark + GROUPS * (column // TILE_BLOCKS)
                marked = tl.load(
                    of_column[None, :] + (mark * n)[None, :] * HEAD_DIM + dim[:, None],
                    mask=(mark <= marks)[None, :] & (dim < HEAD_DIM)[:, None],
                    other=0.0,
                )
                scores = tl.dot(q, marked, input_precision=PRECISION) * scale_log2
                scores = tl.where((mark <= marks)[None, :], scores, float("-inf"))
                most = tl.maximum(most, tl.max(tl.reshape(scores, (BLOCK_Q, MARKS, TILE_BLOCKS)), 1))
            higher_block = tl.maximum(block_highest, most)
            lower = tl.exp2(block_highest - higher_block)
            mass = tl.exp2(most - higher_block)
            block_total = block_total * lower + mass
            block_squares = block_squares * (lower * lower) + mass * mass
            block_highest = higher_block
        log_norm = block_highest + 0.5 * tl.log2(block_squares)
        tl.store(log_norms + slot[:, None] * n + block[None, :], log_norm, mask=scored[None, :])
        log_sum = block_highest + tl.log2(block_total)
        higher = tl.maximum(highest, tl.max(log_sum, 1))
        offset = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(highest - offset) + tl.sum(tl.exp2(log_sum - offset[:, None]), 1)
        highest = higher
    tl.store(totals + slot, tl.where(row < row_stop, _log_sum(highest, total), float("-inf")))


@triton.jit
def _write_bits(
    log_norms,
    totals,
    visible,  # int8 [B|1, n]: the block holds a valid key
    sinks,
    ends,
    block_mask,
    visible_batch,
    sink_batch,
    ends_batch,
    heads,
    q_len,
    q_offset,
    first_query_block,
    n_query_blocks,
    n,
    words,
    window_slashes,
    last_rows,
    tau,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORD_BITS: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
):
    q_block = first_query_block + tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, word = batch_head // heads, tl.program_id(2)
    block = word * WORD_BITS + tl.arange(0, WORD_BITS)
    low = floor_div(q_block * BLOCK_Q + q_offset, BLOCK_K)
    prompt_end = row_end(ends, batch, ends_batch, q_len, HAS_SEGMENT)
    row_stop = block_stop(q_block * BLOCK_Q, prompt_end, q_len, BLOCK_Q)
    last = row_stop - 1 + q_offset
    whole = holds_last_row(row_stop, prompt_end, last_rows)
    end = tl.where(whole, 0, tl.minimum(tl.maximum(low - window_slashes + 1, 0), n))
    squares = tl.zeros((WORD_BITS,), tl.float32)
    if word * WORD_BITS < end:
        slot = (batch_head * tl.num_programs(0) + tl.program_id(0)) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        total = tl.load(totals + slot)
        seen = total != float("-inf")
        log_norm = tl.load(
            log_norms + slot[:, None] * n + block[None, :],
            mask=seen[:, None] & (block < end)[None, :],
            other=float("-inf"),
        )
        share = tl.exp2(log_norm - tl.where(seen, total, 0.0)[:, None])
        squares = tl.sum(share * share, 0)
    keep = (squares >= tau * tau) | (block >= end) | (block == tl.load(sinks + batch * sink_batch))
    keep = keep & (block < n) & (block * BLOCK_K <= last)
    keep = keep & (tl.load(visible + batch * visible_batch + block, mask=block < n, other=0) != 0)
    bits = tl.sum(keep.to(tl.int32) << tl.arange(0, WORD_BITS), 0)
    tl.store(block_mask + (batch_head * n_query_blocks + q_block) * words + word, bits)


def select_adaptive(a: Arguments) -> Tensor:
    """The op ``select_adaptive`` (see ``op``). Two launches a group; no host synchronisation."""
    batch, heads, q_len, dim = a.query.shape
    heads_kv, k_len = a.key.shape[1:3]
    grid, block_q, block_k = Grid.of(a), a.block_q, a.block_k
    n, n_query_blocks, words = grid.n_key_blocks, grid.n_query_blocks, grid.n_words
    block_mask = new_index(a.query, (batch, heads), grid)
    if block_mask.numel() == 0:
        return block_mask
    query, key = readable(a.query), readable(a.key)
    landmarks = (a.log_weights[:, :, 1:] > float("-inf")).sum(2, dtype=torch.int32)
    visible, sinks = visible_and_sinks(a.key_segment, n, block_k, a.keep_sink, query.device)
    ends = ends_of_rows(a.key_segment, q_len, a.q_offset)
    per_block = batch * heads * block_q * n * 4
    step = min(max(SCRATCH_BYTES // per_block, 1), n_query_blocks)
    log_norms = query.new_empty((batch * heads, step, block_q, n), dtype=torch.float32)
    totals = query.new_empty((batch * heads, step, block_q), dtype=torch.float32)
    for first in range(0, n_query_blocks, step):
        count = min(step, n_query_blocks - first)
        _score_blocks[(count, batch * heads)](
            query,
            key,
            a.representatives.contiguous(),
            a.log_weights.contiguous(),
            a.spreads.contiguous(),
            landmarks,
            a.key_segment,
            ends,
            log_norms,
            totals,
            *query.stride()[:3],
            *key.stride()[:3],
            batch_stride(a.key_segment),
            batch_stride(ends),
            heads,
            heads // heads_kv,
            q_len,
            k_len,
            a.q_offset,
            first,
            n,
            a.representatives.shape[2],
            a.last_rows,
            a.scale,
            HEAD_DIM=dim,
            TILE_DIM=tile_dim(dim),
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            TILE_BLOCKS=TILE_BLOCKS,
            MARKS=MARKS,
            GROUPS=LANDMARK_GROUPS,
            HAS_SEGMENT=a.key_segment is not None,
            PRECISION="ieee",
            LOG2_E=LOG2_E,
            LOWEST=LOWEST,
            num_warps=8 if block_q == 128 else 4,
            num_stages=2,
        )
        _write_bits[(count, batch * heads, words)](
            log_norms,
            totals,
            visible,
            sinks,
            ends,
            block_mask,
            batch_stride(visible),
            batch_stride(sinks),
            batch_stride(ends),
            heads,
            q_len,
            a.q_offset,
            first,
            n_query_blocks,
            n,
            words,
            a.window_slashes,
            a.last_rows,
            a.tau,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            WORD_BITS=WORD_BITS,
            HAS_SEGMENT=a.key_segment is not None,
        )
    return block_mask
