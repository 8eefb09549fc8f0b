"""Rows' shares of key blocks as bits of the index: the second kernel of ``select_adaptive``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.triton import block_stop, floor_div, holds_last_row, row_end

WORDS = 4  # of the index that a thread block writes


@triton.jit
def first_forced(first_position, whole, window_slashes, n_key_blocks, BLOCK_K: tl.constexpr):
    """The key block from which on a query block keeps all that its rows reach: the first of its diagonals."""
    low = floor_div(first_position, BLOCK_K)
    return tl.where(whole, 0, tl.minimum(tl.maximum(low - window_slashes + 1, 0), n_key_blocks))


@triton.jit
def store_words(
    found, word, block_mask, words, visible, sink, end, last, n_key_blocks,
    BLOCK_K: tl.constexpr,
    WORD_BITS: tl.constexpr,
):  # fmt: skip
    """Writes a query block's words: of bool ``found`` [n, WORD_BITS] those before block ``end``, and forced.

    ``word`` [n]: which of the ``words`` they are; ``last``: position of the query block's last row.
    """
    bit = tl.arange(0, WORD_BITS)[None, :]
    block = word[:, None] * WORD_BITS + bit
    keep = found | (block >= end) | (block == sink)
    keep = keep & (block < n_key_blocks) & (block * BLOCK_K <= last)
    keep = keep & (tl.load(visible + block, mask=block < n_key_blocks, other=0) != 0)
    tl.store(block_mask + word, tl.sum(keep.to(tl.int32) << bit, 1), mask=word < words)


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
    prompt_end = row_end(ends, batch, ends_batch, q_len, HAS_SEGMENT)
    row_stop = block_stop(q_block * BLOCK_Q, prompt_end, q_len, BLOCK_Q)
    last = row_stop - 1 + q_offset
    whole = holds_last_row(row_stop, prompt_end, last_rows)
    end = first_forced(q_block * BLOCK_Q + q_offset, whole, window_slashes, n_key_blocks, BLOCK_K)
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
    word = tl.program_id(2) * WORDS + tl.arange(0, WORDS)
    sink = tl.load(sinks + batch * sink_batch)
    block_mask += (batch_head * n_query_blocks + q_block) * words
    visible += batch * visible_batch
    found = tl.reshape(norm >= tau * tau, (WORDS, WORD_BITS))
    store_words(found, word, block_mask, words, visible, sink, end, last, n_key_blocks, BLOCK_K, WORD_BITS)
