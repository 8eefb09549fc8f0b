"""``select_blocks`` on the device: which strips are kept, then one bit a block.

An entry is kept iff the sum of the entries sorted before it is below alpha times the total. "Before" is a
comparison, so no sort is needed: every entry sums what is larger than itself (ties: what has a lower index).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.grid import new_index
from ..shared.shapes import ceil_div
from ..shared.triton import (
    batch_stride,
    block_stop,
    ends_of_rows,
    floor_div,
    holds_last_row,
    row_end,
    visible_and_sinks,
)
from .op import Arguments

ENTRIES = 64  # strips that one program decides
OTHERS = 128  # strips that it compares them with at a time
WORDS = 32  # words of a row that one program writes


@triton.jit
def _keep_strips(
    column_scores,
    slash_scores,
    kept,  # int8 [2, B * Hq, n_key_blocks]: columns, slashes
    n_key_blocks,
    alpha_c,
    alpha_s,
    TILE: tl.constexpr,
    OTHERS: tl.constexpr,
):
    batch_head, slashes = tl.program_id(1).to(tl.int64), tl.program_id(2)
    scores = tl.where(slashes == 1, slash_scores, column_scores) + batch_head * n_key_blocks
    alpha = tl.where(slashes == 1, alpha_s, alpha_c)
    index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    own = tl.load(scores + index, mask=index < n_key_blocks, other=0.0)
    before = tl.zeros((TILE,), tl.float32)
    total = 0.0
    for start in range(0, n_key_blocks, OTHERS):
        other_index = start + tl.arange(0, OTHERS)
        other = tl.load(scores + other_index, mask=other_index < n_key_blocks, other=0.0)
        total += tl.sum(other, 0)
        tie = (other[None, :] == own[:, None]) & (other_index[None, :] < index[:, None])
        earlier = (other[None, :] > own[:, None]) | tie
        before += tl.sum(tl.where(earlier, other[None, :], 0.0), 1)
    keep = before < tl.where(alpha >= 1, float("inf"), alpha * total)
    row = kept + (slashes * tl.num_programs(1) + batch_head) * n_key_blocks
    tl.store(row + index, keep.to(tl.int8), mask=index < n_key_blocks)


@triton.jit
def _write_bits(
    kept,
    visible,
    first_visible,
    ends,
    block_mask,
    q_len,
    q_offset,
    q_heads,
    n_key_blocks,
    words,
    visible_batch,  # of first_visible and ends, too: 0 or 1
    window_slashes,
    last_rows,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    KEEP_ALL: tl.constexpr,
    KEEP_SINK: tl.constexpr,
    HAS_VISIBLE: tl.constexpr,
):
    q_block, batch_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch = batch_head // q_heads
    columns = kept + batch_head * n_key_blocks
    slashes = kept + (tl.num_programs(1) + batch_head) * n_key_blocks
    word = tl.program_id(2) * TILE_WORDS + tl.arange(0, TILE_WORDS)
    bit = tl.arange(0, 32)
    block = word[:, None] * 32 + bit[None, :]
    inside = block < n_key_blocks
    first_row = q_block * BLOCK_Q
    end = row_end(ends, batch, visible_batch, q_len, HAS_VISIBLE)
    stop = block_stop(first_row, end, q_len, BLOCK_Q)
    last = stop - 1 + q_offset
    low, high = floor_div(first_row + q_offset, BLOCK_K), floor_div(last, BLOCK_K)
    if KEEP_ALL:
        keep = inside
    else:
        keep = tl.load(columns + block, mask=inside, other=0) != 0
        # The rows of a query block lie in at most this many consecutive blocks of BLOCK_K positions.
        for step in tl.static_range((BLOCK_Q - 1) // BLOCK_K + 2):
            slash = tl.minimum(low + step, high) - block
            exists = inside & (slash >= 0) & (slash < n_key_blocks)
            keep = keep | (tl.load(slashes + slash, mask=exists, other=0) != 0)
        keep = keep | (low - block < window_slashes) | holds_last_row(stop, end, last_rows)
        if KEEP_SINK:
            sink = tl.load(first_visible + batch * visible_batch) if HAS_VISIBLE else 0
            keep = keep | (block == sink)
    keep = keep & inside & (block * BLOCK_K <= last)
    if HAS_VISIBLE:
        seen = tl.load(visible + batch * visible_batch * n_key_blocks + block, mask=inside, other=0)
        keep = keep & (seen != 0)
    bits = tl.sum(keep.to(tl.int32) << bit[None, :], 1)
    row = (batch_head * tl.num_programs(0) + q_block) * words
    tl.store(block_mask + row + word, bits, mask=word < words)


def select_blocks(a: Arguments) -> Tensor:
    """The op ``select_blocks`` (see ``op``). Two launches, four with padding; no host synchronisation."""
    batch, q_heads, n_key_blocks = a.column_scores.shape
    n_q, words = a.grid.n_query_blocks, a.grid.n_words
    block_mask = new_index(a.column_scores, (batch, q_heads), a.grid)
    if block_mask.numel() == 0:
        return block_mask
    kept = a.column_scores.new_empty((2, batch * q_heads, n_key_blocks), dtype=torch.int8)
    _keep_strips[(ceil_div(n_key_blocks, ENTRIES), batch * q_heads, 2)](
        a.column_scores.contiguous(),
        a.slash_scores.contiguous(),
        kept,
        n_key_blocks,
        a.alpha_c,
        a.alpha_s,
        TILE=ENTRIES,
        OTHERS=OTHERS,
    )
    visible = first_visible = None
    if a.key_segment is not None:
        visible, first_visible = visible_and_sinks(a.key_segment, n_key_blocks, a.block_k, True, kept.device)
    tile_words = min(WORDS, triton.next_power_of_2(words))
    _write_bits[(n_q, batch * q_heads, ceil_div(words, tile_words))](
        kept,
        visible,
        first_visible,
        ends_of_rows(a.key_segment, a.q_len, a.q_offset),
        block_mask,
        a.q_len,
        a.q_offset,
        q_heads,
        n_key_blocks,
        words,
        batch_stride(first_visible),
        a.window_slashes,
        a.last_rows,
        BLOCK_Q=a.block_q,
        BLOCK_K=a.block_k,
        TILE_WORDS=tile_words,
        KEEP_ALL=a.alpha_c >= 1 or a.alpha_s >= 1,
        KEEP_SINK=a.keep_sink,
        HAS_VISIBLE=a.key_segment is not None,
        num_warps=4,
    )
    return block_mask
