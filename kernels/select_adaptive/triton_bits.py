"""Rows' shares of key blocks as bits of the index: the second kernel of ``select_adaptive``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.triton import block_stop, floor_div, holds_last_row, row_end

WORDS = 4  # of the index that a thread block writes


@triton.jit
def write_bits(
    squares,  # as triton._score_blocks wrote them
    inverses,
    visible,  # int8 [B|1, n_key_blocks]: the block holds a valid key
    sinks,
    ends,
    block_mask,
    visible_batch,
    sink_batch,
    ends_batch,
    q_heads,
    q_len,
    q_offset,
    q_gap,
    first_query_block,
    n_query_blocks,
    n_key_blocks,
    tiles,
    words,
    window_slashes,
    last_rows,
    tau,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORD_BITS: tl.constexpr,
    WORDS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
):
    q_block = first_query_block + tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch = batch_head // q_heads
    first_block = tl.program_id(2) * (WORDS * WORD_BITS)
    block = first_block + tl.arange(0, WORDS * WORD_BITS)
    q_offset += q_block * q_gap
    low = floor_div(q_block * BLOCK_Q + q_offset, BLOCK_K)
    prompt_end = row_end(ends, batch, ends_batch, q_len, HAS_SEGMENT)
    row_stop = block_stop(q_block * BLOCK_Q, prompt_end, q_len, BLOCK_Q)
    last = row_stop - 1 + q_offset
    whole = holds_last_row(row_stop, prompt_end, last_rows)
    end = tl.where(whole, 0, tl.minimum(tl.maximum(low - window_slashes + 1, 0), n_key_blocks))
    norm = tl.zeros((WORDS * WORD_BITS,), tl.float32)
    if first_block < end:
        place, entry = batch_head * tl.num_programs(0) + tl.program_id(0), tl.arange(0, BLOCK_Q)
        tile = place * tiles + block // TILE_BLOCKS
        at = (tile[None, :] * BLOCK_Q + entry[:, None]) * TILE_BLOCKS + (block % TILE_BLOCKS)[None, :]
        # By tiles, whose blocks were all written: a mask of single blocks would load single numbers.
        written = block // TILE_BLOCKS * TILE_BLOCKS < end
        square = tl.load(squares + at, mask=written[None, :], other=0.0).to(tl.float32)
        inverse = tl.load(inverses + place * BLOCK_Q + entry)[:, None]
        norm = tl.sum(tl.where(inverse > 0, square * inverse, 0.0), 0)
    keep = (norm >= tau * tau) | (block >= end) | (block == tl.load(sinks + batch * sink_batch))
    keep = keep & (block < n_key_blocks) & (block * BLOCK_K <= last)
    seen = tl.load(visible + batch * visible_batch + block, mask=block < n_key_blocks, other=0)
    keep = keep & (seen != 0)
    bits = tl.reshape(keep.to(tl.int32), (WORDS, WORD_BITS)) << tl.arange(0, WORD_BITS)[None, :]
    word = tl.program_id(2) * WORDS + tl.arange(0, WORDS)
    to = block_mask + (batch_head * n_query_blocks + q_block) * words + word
    tl.store(to, tl.sum(bits, 1), mask=word < words)
