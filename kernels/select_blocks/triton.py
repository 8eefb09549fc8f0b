"""``select_blocks`` on the device: which strips are kept, then one bit a block.

An entry is kept iff the sum of the entries sorted before it is below alpha times the total. "Before" is a
comparison, so no sort is needed: every entry sums what is larger than itself (ties: what has a lower index).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.shapes import WORD_BITS, ceil_div, n_words
from ..shared.triton import batch_stride, block_stop, ends_of_rows, floor_div, holds_last_row, row_end

ENTRIES = 64  # strips that one program decides
OTHERS = 128  # strips that it compares them with at a time
WORDS = 32  # words of a row that one program writes


@triton.jit
def _keep_strips(
    column_scores,
    slash_scores,
    kept,  # int8 [2, B * Hq, n]: columns, slashes
    n,
    alpha_c,
    alpha_s,
    TILE: tl.constexpr,
    OTHERS: tl.constexpr,
):
    batch_head, slashes = tl.program_id(1).to(tl.int64), tl.program_id(2)
    scores = tl.where(slashes == 1, slash_scores, column_scores) + batch_head * n
    alpha = tl.where(slashes == 1, alpha_s, alpha_c)
    index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    own = tl.load(scores + index, mask=index < n, other=0.0)
    before = tl.zeros((TILE,), tl.float32)
    total = 0.0
    for start in range(0, n, OTHERS):
        other_index = start + tl.arange(0, OTHERS)
        other = tl.load(scores + other_index, mask=other_index < n, other=0.0)
        total += tl.sum(other, 0)
        tie = (other[None, :] == own[:, None]) & (other_index[None, :] < index[:, None])
        earlier = (other[None, :] > own[:, None]) | tie
        before += tl.sum(tl.where(earlier, other[None, :], 0.0), 1)
    keep = before < tl.where(alpha >= 1, float("inf"), alpha * total)
    row = kept + (slashes * tl.num_programs(1) + batch_head) * n
    tl.store(row + index, keep.to(tl.int8), mask=index < n)


@triton.jit
def _find_visible(
    key_segment, visible, first_visible, segment_batch, k_len, n, TILE: tl.constexpr, BLOCK_K: tl.constexpr
):
    batch = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    index = block[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    segment = tl.load(key_segment + batch * segment_batch + index, mask=index < k_len, other=-1)
    seen = tl.max((segment == 0).to(tl.int32), 1)
    tl.store(visible + batch * n + block, seen.to(tl.int8), mask=block < n)
    tl.atomic_min(first_visible + batch, tl.min(tl.where(seen == 1, block, n), 0))


@triton.jit
def _write_bits(
    kept,
    visible,
    first_visible,
    ends,
    block_mask,
    q_len,
    q_offset,
    heads,
    n,
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
    batch = batch_head // heads
    columns = kept + batch_head * n
    slashes = kept + (tl.num_programs(1) + batch_head) * n
    word = tl.program_id(2) * TILE_WORDS + tl.arange(0, TILE_WORDS)
    bit = tl.arange(0, 32)
    block = word[:, None] * 32 + bit[None, :]
    inside = block < n
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
            exists = inside & (slash >= 0) & (slash < n)
            keep = keep | (tl.load(slashes + slash, mask=exists, other=0) != 0)
        keep = keep | (low - block < window_slashes) | holds_last_row(stop, end, last_rows)
        if KEEP_SINK:
            sink = tl.load(first_visible + batch * visible_batch) if HAS_VISIBLE else 0
            keep = keep | (block == sink)
    keep = keep & inside & (block * BLOCK_K <= last)
    if HAS_VISIBLE:
        keep = keep & (tl.load(visible + batch * visible_batch * n + block, mask=inside, other=0) != 0)
    bits = tl.sum(keep.to(tl.int32) << bit[None, :], 1)
    row = (batch_head * tl.num_programs(0) + q_block) * words
    tl.store(block_mask + row + word, bits, mask=word < words)


def select_blocks(
    column_scores: Tensor,
    slash_scores: Tensor,
    key_segment: Tensor | None,
    q_len: int,
    k_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    alpha_c: float,
    alpha_s: float,
    keep_sink: bool,
    window_slashes: int,
    last_rows: int,
) -> Tensor:
    """The op ``select_blocks`` (see ``ops``). Two launches, four with padding; no host synchronisation."""
    batch, heads, n = column_scores.shape
    n_q = ceil_div(q_len, block_q)
    words = n_words(n)
    block_mask = column_scores.new_empty((batch, heads, n_q, words), dtype=torch.int32)
    if block_mask.numel() == 0:
        return block_mask
    kept = column_scores.new_empty((2, batch * heads, n), dtype=torch.int8)
    _keep_strips[(ceil_div(n, ENTRIES), batch * heads, 2)](
        column_scores.contiguous(),
        slash_scores.contiguous(),
        kept,
        n,
        alpha_c,
        alpha_s,
        TILE=ENTRIES,
        OTHERS=OTHERS,
    )
    visible = first_visible = None
    if key_segment is not None:
        visible = key_segment.new_empty((key_segment.shape[0], n), dtype=torch.int8)
        first_visible = key_segment.new_full((key_segment.shape[0],), n, dtype=torch.int32)
        _find_visible[(ceil_div(n, WORD_BITS), key_segment.shape[0])](
            key_segment,
            visible,
            first_visible,
            key_segment.stride(0),
            k_len,
            n,
            TILE=WORD_BITS,
            BLOCK_K=block_k,
        )
    tile_words = min(WORDS, triton.next_power_of_2(words))
    _write_bits[(n_q, batch * heads, ceil_div(words, tile_words))](
        kept,
        visible,
        first_visible,
        ends_of_rows(key_segment, q_len, q_offset),
        block_mask,
        q_len,
        q_offset,
        heads,
        n,
        words,
        batch_stride(first_visible),
        window_slashes,
        last_rows,
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
        TILE_WORDS=tile_words,
        KEEP_ALL=alpha_c >= 1 or alpha_s >= 1,
        KEEP_SINK=keep_sink,
        HAS_VISIBLE=key_segment is not None,
        num_warps=4,
    )
    return block_mask
