"""The op on the device: scores of the sampled rows, then one bit a block.

The first kernel takes 128 sampled rows at a time (64 where those do not fit), those of some query blocks
side by side, and stores for each row and key block the logarithms of its exponentials' sum and of their
2-norm: nothing is carried from one key block to the next. The second finds the rows' totals, averages their
shares and searches the share from which on blocks are kept. Query blocks come in batches whose logarithms fit
in ``SCRATCH_BYTES``. ``select_budget_rest`` has the second also write the shares of what is left out. No host
synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..choice import shared_memory
from ..shared.grid import Grid, new_index
from ..shared.shapes import WORD_BITS, ceil_div
from ..shared.triton import LOG2_E, batch_stride, floor_div, readable, tile_dim, visible_and_sinks
from .op import Arguments, rows_of_a_block

SCRATCH_BYTES = 256 << 20
# Sampled rows of a tile, warps and stages: the first that the device's shared memory holds.
TILES = ((128, 8, 2), (64, 4, 2), (64, 4, 1))
HALVINGS = 24  # of the interval in which the share is searched: its width is budget / 2**24


@triton.jit
def _sums_of_a_block(
    q, keys, key_segment, position, dim, block, k_row, kv_len, scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,  # not every row sees every key of the block
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Logarithms of the sum and of the 2-norm of the exponentials of the rows' scores with a block's keys."""
    index = block * BLOCK_K + tl.arange(0, BLOCK_K)
    places = keys + index[None, :].to(tl.int64) * k_row + dim[:, None]
    if MASKED:
        k = tl.load(places, mask=(index < kv_len)[None, :] & (dim < HEAD_DIM)[:, None], other=0.0)
    elif dim.shape[0] != HEAD_DIM:
        k = tl.load(places, mask=(dim < HEAD_DIM)[:, None], other=0.0)
    else:
        k = tl.load(places)
    scores = tl.dot(q, k, input_precision=PRECISION) * scale_log2
    if MASKED:
        seen = (index[None, :] <= position[:, None]) & (index < kv_len)[None, :]
        if HAS_SEGMENT:
            segment = tl.load(key_segment + index, mask=index < kv_len, other=-1)
            seen = seen & (segment == 0)[None, :]
        scores = tl.where(seen, scores, float("-inf"))
    highest = tl.max(scores, 1)
    offset = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - offset[:, None])
    return offset + tl.log2(tl.sum(weights, 1)), offset + 0.5 * tl.log2(tl.sum(weights * weights, 1))


@triton.jit
def _score(
    query,
    key,
    key_segment,
    logs,  # fp32 [2: sums, 2-norms; B * Hq, n_key_blocks, query blocks of the batch * COUNT], base 2
    norms,  # the second half of logs
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    segment_batch,
    q_heads,
    group,
    q_len,
    kv_len,
    q_offset,
    q_gap,  # from a query block's end to the next one's beginning
    first_query_block,
    query_blocks,  # of this batch
    n_key_blocks,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COUNT: tl.constexpr,  # sampled rows of a query block
    TILE_ROWS: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // q_heads, batch_head % q_heads
    sample = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)  # of this batch's
    block = first_query_block + sample // COUNT
    step: tl.constexpr = BLOCK_Q // COUNT
    number = floor_div(block * (BLOCK_Q + q_gap) + q_offset, BLOCK_Q)  # of the block in its prompt
    row = block * BLOCK_Q + ((5 * number + 3) & (step - 1)) + sample % COUNT * step
    row = tl.minimum(row, tl.minimum((block + 1) * BLOCK_Q, q_len) - 1)
    exists = sample < query_blocks * COUNT
    position = tl.where(exists, row + q_offset + block * q_gap, -1)
    dim = tl.arange(0, TILE_DIM)
    q = tl.load(
        query + batch * q_batch + head * q_head + row[:, None].to(tl.int64) * q_row + dim[None, :],
        mask=exists[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    keys = key + batch * k_batch + head // group * k_head
    lowest = first_query_block + tile * TILE_ROWS // COUNT
    highest_sample = tl.minimum((tile + 1) * TILE_ROWS, query_blocks * COUNT) - 1
    highest = first_query_block + highest_sample // COUNT
    end = tl.minimum((highest + 1) * BLOCK_Q, q_len) + q_offset + highest * q_gap
    stop = tl.minimum(floor_div(end - 1, BLOCK_K) + 1, n_key_blocks)
    clear = floor_div(lowest * (BLOCK_Q + q_gap) + q_offset + 1, BLOCK_K)  # all rows see the blocks before it
    all_rows = query_blocks * COUNT
    place = batch_head * n_key_blocks * all_rows + sample
    segments = key_segment + batch * segment_batch if HAS_SEGMENT else key_segment
    whole = tl.minimum(clear, kv_len // BLOCK_K)  # blocks that hold keys alone, of which all rows see all
    whole = 0 if HAS_SEGMENT else tl.maximum(tl.minimum(whole, stop), 0)
    for j in range(0, whole):
        total, norm = _sums_of_a_block(
            q, keys, segments, position, dim, j, k_row, kv_len, scale_log2,
            HEAD_DIM, BLOCK_K, False, False, PRECISION,
        )  # fmt: skip
        tl.store(logs + place, total, mask=exists)
        tl.store(norms + place, norm, mask=exists)
        place += all_rows
    for j in range(whole, stop):
        total, norm = _sums_of_a_block(
            q, keys, segments, position, dim, j, k_row, kv_len, scale_log2,
            HEAD_DIM, BLOCK_K, True, HAS_SEGMENT, PRECISION,
        )  # fmt: skip
        tl.store(logs + place, total, mask=exists)
        tl.store(norms + place, norm, mask=exists)
        place += all_rows


@triton.jit
def _write_bits(
    logs,  # as _score writes them
    norms,
    visible,  # int8 [B|1, n_key_blocks]
    sinks,  # int32 [B|1]
    block_mask,  # int32 [B * Hq, n_query_blocks, words]
    given,  # int32 [B|1, Hq|1, n_query_blocks, words]: blocks that are kept, too
    rest_shares,  # fp32 [B * Hq, query blocks of the batch, n_key_blocks]: of blocks that are not kept
    rest_share,  # fp32 [B * Hq, n_query_blocks]: their sum
    rest_level,  # likewise: the mean of the rows' log-sum-exp, and the logarithm of what is kept of them
    sink_logits,  # fp32 [Hq|1]: of a head, a logit that has its share of each row's attention; or None
    visible_batch,
    sink_batch,
    sink_logit_stride,
    given_batch,
    given_head,
    given_row,
    given_word,
    q_heads,
    q_len,
    q_offset,
    q_gap,
    first_query_block,
    query_blocks,
    n_query_blocks,
    n_key_blocks,
    words,
    window_slashes,
    budget,
    tau,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COUNT: tl.constexpr,
    ALL_WORDS: tl.constexpr,  # a power of two, at least `words`
    WORD_BITS: tl.constexpr,
    HALVINGS: tl.constexpr,
    HAS_REST: tl.constexpr,  # what comes after block_mask and its strides are read and written
    HAS_SINKS: tl.constexpr,
):
    q_block = first_query_block + tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch = batch_head // q_heads
    j = tl.arange(0, ALL_WORDS * WORD_BITS)
    q_offset += q_block * q_gap
    own = floor_div(q_block * BLOCK_Q + q_offset, BLOCK_K)
    last = tl.minimum((q_block + 1) * BLOCK_Q, q_len) - 1 + q_offset
    allowed = (j < n_key_blocks) & (j * BLOCK_K <= last)
    share = tl.zeros([ALL_WORDS * WORD_BITS], dtype=tl.float32)
    squares = tl.zeros([ALL_WORDS * WORD_BITS], dtype=tl.float32)
    among_keys = tl.zeros([ALL_WORDS * WORD_BITS], dtype=tl.float32)
    rows = 0.0
    level = 0.0
    if HAS_SINKS:
        sink = tl.load(sink_logits + batch_head % q_heads * sink_logit_stride) * 1.4426950408889634
    place = (batch_head * n_key_blocks + j) * (query_blocks * COUNT) + tl.program_id(0) * COUNT
    for r in range(0, COUNT):
        row = tl.load(logs + place + r, mask=allowed, other=float("-inf"))
        norm = tl.load(norms + place + r, mask=allowed, other=float("-inf"))
        highest = tl.max(row, 0)
        offset = tl.where(highest == float("-inf"), 0.0, highest)
        masses = tl.exp2(row - offset)
        total = tl.sum(masses, 0)
        total_or_one = tl.where(total > 0.0, total, 1.0)
        if HAS_SINKS:
            among_keys += masses / total_or_one
            all_of_row = total_or_one + tl.exp2(sink - offset)
        else:
            all_of_row = total_or_one
        share += masses / all_of_row
        largest = tl.exp2(norm - offset) / all_of_row
        squares += largest * largest
        rows += tl.where(total > 0.0, 1.0, 0.0)
        level += tl.where(total > 0.0, offset + tl.log2(total_or_one), 0.0)
    share = share / tl.maximum(rows, 1.0)
    squares = squares * (BLOCK_Q / tl.maximum(rows, 1.0))
    allowed = allowed & (tl.load(visible + batch * visible_batch + j, mask=j < n_key_blocks, other=0) != 0)
    forced = (own - j < window_slashes) | (j == tl.load(sinks + batch * sink_batch))
    average = among_keys / tl.maximum(rows, 1.0) if HAS_SINKS else share
    share = tl.where(allowed & (forced == 0), share, 0.0)
    low, high = budget * 0.0, budget
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        left_out = tl.sum(tl.where(share < middle, share, 0.0), 0)
        enough = middle * (middle + 2.0 * left_out) >= budget * budget
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)
    keep = ((share >= high) | (squares >= tau * tau) | forced) & allowed
    if HAS_REST:
        given += batch * given_batch + batch_head % q_heads * given_head + q_block.to(tl.int64) * given_row
        words_of_given = tl.load(given + j // WORD_BITS * given_word, mask=j < n_key_blocks, other=0)
        keep = keep | (((words_of_given >> (j % WORD_BITS)) & 1 != 0) & allowed)
        left = tl.where(allowed & (keep == 0), average, 0.0)
        at = (batch_head * query_blocks + tl.program_id(0)) * n_key_blocks + j
        tl.store(rest_shares + at, left, mask=j < n_key_blocks)
        kept = tl.sum(tl.where(keep, average, 0.0), 0)
        level = level / tl.maximum(rows, 1.0) + tl.log2(tl.where(kept > 0.0, kept, 1.0))
        at = batch_head * n_query_blocks + q_block
        tl.store(rest_share + at, tl.sum(left, 0))
        tl.store(rest_level + at, tl.where(kept > 0.0, level * 0.6931471805599453, float("-inf")))
    word = tl.arange(0, ALL_WORDS)
    bits = tl.reshape(keep.to(tl.int32) << (j % WORD_BITS), [ALL_WORDS, WORD_BITS])
    tl.store(
        block_mask + (batch_head * n_query_blocks + q_block) * words + word,
        tl.sum(bits, 1),
        mask=word < words,
    )


def tile_that_fits(dim: int, block_k: int, shared: int) -> tuple[int, int, int]:
    """An entry of TILES for 16-bit elements, rows and keys of ``dim`` columns and ``shared`` bytes."""
    fitting = (tile for tile in TILES if 2 * dim * (tile[0] + tile[2] * block_k) + 1024 <= shared)
    return next(fitting, TILES[-1])


class Rest(NamedTuple):
    """What ``select_budget_rest`` has beside ``select_budget``."""

    block_mask: Tensor  # blocks that are kept, too
    share: Tensor
    level: Tensor
    # Takes shares of what is left out, fp32 [B * Hq, query blocks, n_key_blocks], and the first query block.
    take: Callable[[Tensor, int], None]


def select_budget(a: Arguments) -> Tensor:
    """The op ``select_budget``."""
    return select_and_rest(a, None)


def select_and_rest(a: Arguments, rest: Rest | None) -> Tensor:
    """The blocks that are kept; ``rest`` is filled. Two launches a batch of query blocks."""
    batch, q_heads, q_len, dim = a.query.shape
    kv_heads, kv_len = a.key.shape[1:3]
    grid, block_q, block_k = Grid.of(a), a.block_q, a.block_k
    n_key_blocks, n_query_blocks, words = grid.n_key_blocks, grid.n_query_blocks, grid.n_words
    block_mask = new_index(a.query, (batch, q_heads), grid)
    if block_mask.numel() == 0:
        return block_mask
    query, key = readable(a.query), readable(a.key)
    visible, sinks = visible_and_sinks(a.key_segment, n_key_blocks, block_k, a.keep_sink, query.device)
    count = rows_of_a_block(a.rows, kv_len, block_q)
    tile_rows, warps, stages = TILES[0]  # in Triton's interpreter
    if query.is_cuda:
        tile_rows, warps, stages = tile_that_fits(tile_dim(dim), block_k, shared_memory(query.device))
    tiles = ceil_div(tile_rows, count)  # query blocks of a tile of rows
    row_bytes = 8 * count + (0 if rest is None else 4)  # of a query block and a key block
    per_tile = row_bytes * batch * q_heads * tiles * max(n_key_blocks, 1)
    step = min(max(SCRATCH_BYTES // per_tile, 1) * tiles, n_query_blocks)
    logs, norms = query.new_empty((2, batch * q_heads, n_key_blocks, step * count), dtype=torch.float32)
    left_out = query.new_empty((0,), dtype=torch.float32)
    if rest is not None:
        left_out = query.new_empty((batch * q_heads * step * n_key_blocks,), dtype=torch.float32)
    given, share, level = (block_mask, left_out, left_out) if rest is None else rest[:3]
    strides = (
        *(0 if given.shape[i] == 1 else given.stride(i) for i in range(2)),
        *given.stride()[2:],
    )
    q_gap = (a.q_stride - 1) * block_q
    for first in range(0, n_query_blocks, step):
        query_blocks = min(step, n_query_blocks - first)
        _score[(ceil_div(query_blocks * count, tile_rows), batch * q_heads)](
            query,
            key,
            a.key_segment,
            logs,
            norms,
            *query.stride()[:3],
            *key.stride()[:3],
            batch_stride(a.key_segment),
            q_heads,
            q_heads // kv_heads,
            q_len,
            kv_len,
            a.q_offset,
            q_gap,
            first,
            query_blocks,
            n_key_blocks,
            a.scale * LOG2_E,
            HEAD_DIM=dim,
            TILE_DIM=tile_dim(dim),
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            COUNT=count,
            TILE_ROWS=tile_rows,
            HAS_SEGMENT=a.key_segment is not None,
            PRECISION="ieee",
            num_warps=warps,
            num_stages=stages,
        )
        _write_bits[(query_blocks, batch * q_heads)](
            logs,
            norms,
            visible,
            sinks,
            block_mask,
            given,
            left_out,
            share,
            level,
            a.sinks,
            batch_stride(visible),
            batch_stride(sinks),
            batch_stride(a.sinks),
            *strides,
            q_heads,
            q_len,
            a.q_offset,
            q_gap,
            first,
            query_blocks,
            n_query_blocks,
            n_key_blocks,
            words,
            a.window_slashes,
            a.budget,
            a.tau,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            COUNT=count,
            ALL_WORDS=triton.next_power_of_2(words),
            WORD_BITS=WORD_BITS,
            HALVINGS=HALVINGS,
            HAS_REST=rest is not None,
            HAS_SINKS=a.sinks is not None,
            num_warps=4 if n_key_blocks <= 1024 else 8,
        )
        if rest is not None:
            shape = (batch * q_heads, query_blocks, n_key_blocks)
            rest.take(left_out[: batch * q_heads * query_blocks * n_key_blocks].view(shape), first)
    return block_mask
