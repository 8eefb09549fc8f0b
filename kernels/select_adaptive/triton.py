"""``select_adaptive`` in Triton: the portable path.

Representatives and queries are multiplied as bytes, as the Hopper kernel does: the matrix unit multiplies
these twice as fast, and all landmarks of a block count in one unit, so that the largest is found before any
product becomes a float. A landmark of many key blocks at a time makes a product: nothing is reduced across
columns. A row's shares need its total, which the end of the pass knows, so the pass stores a number for every
(row, key block), the sum of its keys' squared exponentials relative to the row's highest score so far, and a
second kernel turns them into bits. Query blocks come in groups whose numbers fit in ``SCRATCH_BYTES``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..defaults import LANDMARK_GROUPS
from ..shared.grid import Grid, new_index
from ..shared.shapes import WORD_BITS, ceil_div
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
from .triton_codes import code_factor, codes_of, rounded

SCRATCH_BYTES = 256 << 20
TILE_BLOCKS = 32  # key blocks scored at a time
STAGES = 3
REGISTERS = 128  # a thread: two thread blocks of 256 share a multiprocessor, and hide each other's latency


@triton.jit
def _log_sum(highest, total):
    offset = tl.where(highest == float("-inf"), 0.0, highest)
    return offset + tl.log2(total)


@triton.jit
def _exact_block(
    q, keys, key_segment, highest, total, block, position, dim, k_row, kv_len, scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the exact scores of a key block to the rows' running totals."""
    index = block * BLOCK_K + tl.arange(0, BLOCK_K)
    exists = (index >= 0) & (index < kv_len)
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
def _products(
    row_codes, codes, member, start, marks, n_padded,
    CODE_DIM: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    WHOLE: tl.constexpr,
    LEAST: tl.constexpr,
):  # fmt: skip
    """Of the rows' bytes with those of a member of each block of the tile; LEAST for a block without it."""
    of_tile = codes + (member * n_padded + start).to(tl.int64) * CODE_DIM
    block, dim = tl.arange(0, TILE_BLOCKS), tl.arange(0, CODE_DIM)
    product = tl.dot(row_codes, tl.load(of_tile + block[None, :] * CODE_DIM + dim[:, None]))
    return product if WHOLE else tl.where((member <= marks)[None, :], product, LEAST)


@triton.jit
def _score_blocks(
    query,
    key,
    representatives,
    log_weights,
    spreads,
    codes,
    units,
    landmarks,  # int32 [B, Hkv, n]: how many the block has; not read if WHOLE
    key_segment,
    ends,
    all_row_codes,  # int8 [B * Hq, query blocks of the group, BLOCK_Q, CODE_DIM]
    squares,  # bf16 [B * Hq, query blocks of the group, BLOCK_Q, n]
    offsets,  # fp32 [B * Hq, query blocks of the group, tiles, BLOCK_Q]: what squares are relative to, base 2
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
    kv_len,
    q_offset,
    q_gap,  # from a query block's end to the next one's beginning
    first_query_block,
    n,
    n_padded,
    tiles,
    last_rows,
    scale,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    CODE_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    WHOLE: tl.constexpr,  # every block before a query block's own has all its landmarks
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    LOG2_E: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Long rows first: the last query blocks have the most key blocks.
    of_group = tl.num_programs(0) - 1 - tl.program_id(0)
    q_block = first_query_block + of_group
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    kv_head = batch * (heads // group) + head // group
    row = q_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_offset += q_block * q_gap
    position = tl.where(row < q_len, row + q_offset, -1)
    dim = tl.arange(0, TILE_DIM)
    q = tl.load(
        query + batch * q_batch + head * q_head + row[:, None].to(tl.int64) * q_row + dim[None, :],
        mask=(row < q_len)[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    scale_log2 = scale * LOG2_E
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
    for exact in range(own * (BLOCK_K // TILE_KEYS), stop * (BLOCK_K // TILE_KEYS)):
        highest, total = _exact_block(
            q, keys, segments, highest, total, exact, position, dim, k_row, kv_len, scale_log2,
            HEAD_DIM, TILE_KEYS, HAS_SEGMENT, PRECISION,
        )  # fmt: skip

    numbers = q.to(tl.float32)
    half_norm = tl.sum(numbers * numbers, 1) * (0.5 * scale * scale_log2)
    common = tl.load(representatives + kv_head * MEMBERS * n * HEAD_DIM + dim, mask=dim < HEAD_DIM, other=0.0)
    base = tl.sum(numbers * common.to(tl.float32)[None, :], 1) * scale_log2
    largest = tl.max(tl.abs(numbers), 1)
    row_unit = largest * (scale_log2 / 127.0)
    place_of_group = batch_head * tl.num_programs(0) + of_group
    slot = place_of_group * BLOCK_Q + tl.arange(0, BLOCK_Q)
    # Through memory: an operand that was loaded is multiplied where it lies, and takes no registers.
    all_row_codes += slot[:, None] * CODE_DIM
    tl.store(all_row_codes + dim[None, :], rounded(numbers * code_factor(largest)[:, None]).to(tl.int8))
    if TILE_DIM < CODE_DIM:
        behind = TILE_DIM + tl.arange(0, CODE_DIM - TILE_DIM)
        tl.store(all_row_codes + behind[None, :], tl.zeros((BLOCK_Q, CODE_DIM - TILE_DIM), tl.int8))
    tl.debug_barrier()
    row_codes = tl.load(all_row_codes + tl.arange(0, CODE_DIM)[None, :])

    codes += kv_head * MEMBERS * n_padded * CODE_DIM
    units += kv_head * n_padded
    USED: tl.constexpr = min(GROUPS, MEMBERS - 1)
    PARTS: tl.constexpr = max((MEMBERS - 1 + GROUPS - 1) // GROUPS, 1)
    LEAST: tl.constexpr = -2147483648
    most_1 = tl.full((BLOCK_Q, TILE_BLOCKS), LEAST, tl.int32)
    most_2 = tl.full((BLOCK_Q, TILE_BLOCKS), LEAST, tl.int32)
    most_3 = tl.full((BLOCK_Q, TILE_BLOCKS), LEAST, tl.int32)
    # One loop over tiles and landmarks, so that loads run ahead across tiles.
    for step in tl.range(0, tl.cdiv(own, TILE_BLOCKS) * PARTS, num_stages=STAGES):
        start, part = step // PARTS * TILE_BLOCKS, step % PARTS
        block = start + tl.arange(0, TILE_BLOCKS)
        marks = block
        if not WHOLE:
            marks = tl.load(landmarks + kv_head * n + tl.minimum(block, n - 1))
        # Where a group has no landmark of this number, its first one counts twice.
        first = 1 + part * GROUPS
        if USED > 0:
            found = _products(
                row_codes, codes, first, start, marks, n_padded, CODE_DIM, TILE_BLOCKS, WHOLE, LEAST
            )
            most_1 = tl.maximum(most_1, found)
        if USED > 1:
            mark = tl.where(first + 1 < MEMBERS, first + 1, 2)
            found = _products(
                row_codes, codes, mark, start, marks, n_padded, CODE_DIM, TILE_BLOCKS, WHOLE, LEAST
            )
            most_2 = tl.maximum(most_2, found)
        if USED > 2:
            mark = tl.where(first + 2 < MEMBERS, first + 2, 3)
            found = _products(
                row_codes, codes, mark, start, marks, n_padded, CODE_DIM, TILE_BLOCKS, WHOLE, LEAST
            )
            most_3 = tl.maximum(most_3, found)
        if part == PARTS - 1:
            scored = block < own
            place = kv_head * MEMBERS * n + tl.minimum(block, n - 1)
            weight = tl.load(log_weights + place) * LOG2_E
            worth = row_unit[:, None] * tl.load(units + block)[None, :]
            number = tl.maximum(weight, 0.0)[None, :]  # log of the keys that the mean stands for, if any
            boost = tl.minimum(half_norm[:, None] * tl.load(spreads + place)[None, :], number)
            mean = _products(
                row_codes, codes, 0 * part, start, marks, n_padded, CODE_DIM, TILE_BLOCKS, True, LEAST
            )
            mean_score = mean.to(tl.float32) * worth + boost + weight[None, :]
            most = tl.maximum(tl.maximum(most_1, most_2), most_3)
            score = tl.where(most == LEAST, float("-inf"), most.to(tl.float32) * worth)
            score = tl.where(scored[None, :], tl.maximum(score, mean_score), float("-inf"))
            higher = tl.maximum(highest, tl.max(score, 1) + base)
            offset = tl.where(higher == float("-inf"), 0.0, higher)
            shift = (base - offset)[:, None]
            mean_score = mean_score + shift
            # The keys that the mean stands for share its mass, the less equally the further they spread.
            mass = tl.exp2(mean_score)
            square = tl.exp2(2 * mean_score + tl.minimum(2 * boost - number, 0.0))
            for landmark_group in tl.static_range(USED):
                most = most_1 if landmark_group == 0 else (most_2 if landmark_group == 1 else most_3)
                term = tl.exp2(most.to(tl.float32) * worth + shift)
                if not WHOLE:
                    term = tl.where(most == LEAST, 0.0, term)
                mass += term
                square += term * term
            tl.store(
                squares + slot[:, None] * n + block[None, :], square.to(tl.bfloat16), mask=scored[None, :]
            )
            tile = place_of_group * tiles + start // TILE_BLOCKS
            tl.store(offsets + tile * BLOCK_Q + tl.arange(0, BLOCK_Q), offset)
            total = total * tl.exp2(highest - offset) + tl.sum(tl.where(scored[None, :], mass, 0.0), 1)
            highest = higher
            most_1 = tl.full((BLOCK_Q, TILE_BLOCKS), LEAST, tl.int32)
            most_2 = tl.full((BLOCK_Q, TILE_BLOCKS), LEAST, tl.int32)
            most_3 = tl.full((BLOCK_Q, TILE_BLOCKS), LEAST, tl.int32)
    tl.store(totals + slot, tl.where(row < row_stop, _log_sum(highest, total), float("-inf")))


@triton.jit
def _write_bits(
    squares,
    offsets,
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
    q_gap,
    first_query_block,
    n_query_blocks,
    n,
    tiles,
    words,
    window_slashes,
    last_rows,
    tau,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORD_BITS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
):
    q_block = first_query_block + tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, word = batch_head // heads, tl.program_id(2)
    block = word * WORD_BITS + tl.arange(0, WORD_BITS)
    q_offset += q_block * q_gap
    low = floor_div(q_block * BLOCK_Q + q_offset, BLOCK_K)
    prompt_end = row_end(ends, batch, ends_batch, q_len, HAS_SEGMENT)
    row_stop = block_stop(q_block * BLOCK_Q, prompt_end, q_len, BLOCK_Q)
    last = row_stop - 1 + q_offset
    whole = holds_last_row(row_stop, prompt_end, last_rows)
    end = tl.where(whole, 0, tl.minimum(tl.maximum(low - window_slashes + 1, 0), n))
    norm = tl.zeros((WORD_BITS,), tl.float32)
    if word * WORD_BITS < end:
        place = batch_head * tl.num_programs(0) + tl.program_id(0)
        entry = tl.arange(0, BLOCK_Q)
        total = tl.load(totals + place * BLOCK_Q + entry)
        seen = total != float("-inf")
        counts = seen[:, None] & (block < end)[None, :]
        square = tl.load(
            squares + (place * BLOCK_Q + entry[:, None]) * n + block[None, :], mask=counts, other=0.0
        )
        tile = place * tiles + block // TILE_BLOCKS
        offset = tl.load(offsets + tile[None, :] * BLOCK_Q + entry[:, None], mask=counts, other=0.0)
        share = square.to(tl.float32) * tl.exp2(2 * (offset - tl.where(seen, total, 0.0)[:, None]))
        norm = tl.sum(tl.where(counts, share, 0.0), 0)
    keep = (norm >= tau * tau) | (block >= end) | (block == tl.load(sinks + batch * sink_batch))
    keep = keep & (block < n) & (block * BLOCK_K <= last)
    keep = keep & (tl.load(visible + batch * visible_batch + block, mask=block < n, other=0) != 0)
    bits = tl.sum(keep.to(tl.int32) << tl.arange(0, WORD_BITS), 0)
    tl.store(block_mask + (batch_head * n_query_blocks + q_block) * words + word, bits)


def select_adaptive(a: Arguments) -> Tensor:
    """The op ``select_adaptive`` (see ``op``). One launch, then two a group; no host synchronisation."""
    batch, heads, q_len, dim = a.query.shape
    kv_heads, kv_len = a.key.shape[1:3]
    grid, block_q, block_k = Grid.of(a), a.block_q, a.block_k
    n, n_query_blocks, words = grid.n_key_blocks, grid.n_query_blocks, grid.n_words
    block_mask = new_index(a.query, (batch, heads), grid)
    if block_mask.numel() == 0:
        return block_mask
    query, key = readable(a.query), readable(a.key)
    visible, sinks = visible_and_sinks(a.key_segment, n, block_k, a.keep_sink, query.device)
    ends = ends_of_rows(a.key_segment, q_len, a.q_offset, a.q_stride, block_q)
    # What a query block's own keys come after has all its keys, unless there is padding.
    members = a.representatives.shape[2]
    whole = a.key_segment is None and grid.positions(q_len - 1) < kv_len and members <= block_k
    landmarks = None if whole else (a.log_weights[:, :, 1:] > float("-inf")).sum(2, dtype=torch.int32)
    tiles, code_dim = ceil_div(n, TILE_BLOCKS), max(32, tile_dim(dim))
    n_padded = tiles * TILE_BLOCKS
    representatives, log_weights = a.representatives.contiguous(), a.log_weights.contiguous()
    codes, units = codes_of(representatives, log_weights, n_padded, code_dim)
    per_block = batch * heads * block_q * (2 * n + 4 * tiles + code_dim)
    step = min(max(SCRATCH_BYTES // per_block, 1), n_query_blocks)
    row_codes = query.new_empty((batch * heads, step, block_q, code_dim), dtype=torch.int8)
    squares = query.new_empty((batch * heads, step, block_q, n), dtype=torch.bfloat16)
    offsets = query.new_empty((batch * heads, step, tiles, block_q), dtype=torch.float32)
    totals = query.new_empty((batch * heads, step, block_q), dtype=torch.float32)
    two_at_once = {"maxnreg": REGISTERS} if block_q == 128 and query.is_cuda else {}
    q_gap = (a.q_stride - 1) * block_q
    for first in range(0, n_query_blocks, step):
        count = min(step, n_query_blocks - first)
        _score_blocks[(count, batch * heads)](
            query,
            key,
            representatives,
            log_weights,
            a.spreads.contiguous(),
            codes,
            units,
            landmarks,
            a.key_segment,
            ends,
            row_codes,
            squares,
            offsets,
            totals,
            *query.stride()[:3],
            *key.stride()[:3],
            batch_stride(a.key_segment),
            batch_stride(ends),
            heads,
            heads // kv_heads,
            q_len,
            kv_len,
            a.q_offset,
            q_gap,
            first,
            n,
            n_padded,
            tiles,
            a.last_rows,
            a.scale,
            HEAD_DIM=dim,
            TILE_DIM=tile_dim(dim),
            CODE_DIM=code_dim,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            TILE_KEYS=min(block_k, 64),
            TILE_BLOCKS=TILE_BLOCKS,
            GROUPS=LANDMARK_GROUPS,
            MEMBERS=members,
            WHOLE=whole,
            HAS_SEGMENT=a.key_segment is not None,
            PRECISION="ieee",
            LOG2_E=LOG2_E,
            STAGES=STAGES,
            num_warps=8 if block_q == 128 else 4,
            num_stages=2,
            **two_at_once,
        )
        _write_bits[(count, batch * heads, words)](
            squares,
            offsets,
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
            q_gap,
            first,
            n_query_blocks,
            n,
            tiles,
            words,
            a.window_slashes,
            a.last_rows,
            a.tau,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            WORD_BITS=WORD_BITS,
            TILE_BLOCKS=TILE_BLOCKS,
            HAS_SEGMENT=a.key_segment is not None,
        )
    return block_mask
