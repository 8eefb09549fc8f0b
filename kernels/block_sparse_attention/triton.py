"""``block_sparse_attention`` in Triton: the portable path, and a cross-check of the CUDA kernel.

A loop with a condition around its products cannot overlap loads with them, and a mask costs as much as the
exponentials. So a first kernel writes each query block's kept blocks as a list, and counts those that neither
position nor length cuts; the second runs the others with a mask, then these without. The lists of as many
query blocks are made at a time as fit in ``SCRATCH_BYTES``.

Exponentials are relative to a number of the row, which need not be its highest score: nothing overflows if it
is not far below that. So only masked tiles look for the highest score, and scale what they have when it
grows. The others take it as it is, and the end tells whether it was too low.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..choice import shared_memory
from ..shared.shapes import ceil_div
from ..shared.triton import LOG2_E, batch_stride, groups_that_fit, readable, tile_dim
from .op import Arguments, new_outputs

SCRATCH_BYTES = 64 << 20
MASKED_STAGES = 2
# Of a row's exponentials: single ones, and products with values, must be numbers in the weights' dtype.
LARGEST_TOTAL = {torch.float16: 2.0**15, torch.bfloat16: 2.0**64, torch.float32: 2.0**64}


class Tile(NamedTuple):
    """Query rows of a thread block, keys of a step, and steps whose keys and values it holds."""

    rows: int
    keys: int
    stages: int = 2

    def bytes_of(self, size: int, dim: int, value_dim: int) -> int:
        """Shared memory for elements of ``size`` bytes, with the KiB that a thread block costs beside."""
        return size * (self.rows * dim + self.stages * self.keys * (dim + value_dim)) + 1024

    def warps(self, value_dim: int) -> int:
        """As many as hold the output's sums in 64 registers a thread."""
        return 4 if self.rows * value_dim <= 128 * 64 else 8


# The first that fits is taken; fast on an H200 at the head dims that it serves there.
SMALL_TILES = (Tile(64, 32), Tile(32, 32), Tile(16, 16))
TILES_OF_64 = (Tile(128, 64, 4), Tile(128, 64, 3), Tile(128, 64), *SMALL_TILES)  # head dims of at most 64
TILES = (Tile(128, 64, 3), Tile(128, 64), Tile(64, 64), *SMALL_TILES)


def tile_that_fits(size: int, dim: int, value_dim: int, shared: int) -> Tile:
    """The tile for elements of ``size`` bytes and these head dims, as ``tile_dim`` rounds them up.

    ``shared``: bytes that a thread block can have. At head dims of at most 64 two share a multiprocessor.
    """
    small = max(dim, value_dim) <= 64
    tiles, share = (TILES_OF_64, (shared + 1024) // 2) if small else (TILES, shared + 1024)
    return next((tile for tile in tiles if tile.bytes_of(size, dim, value_dim) <= share), tiles[-1])


@triton.jit
def _list_blocks(
    block_mask,
    kept,  # int32 [B|1, Hq|1, query blocks of the group, n_key_blocks]
    counts,  # int32 [B|1, Hq|1, query blocks of the group, 3]: before, among and behind the whole blocks
    mask_batch,
    mask_head,
    mask_row,
    mask_heads,
    n_key_blocks,
    q_len,
    kv_len,
    q_offset,
    q_gap,  # from a query block's end to the next one's beginning
    window,
    first_query_block,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    STEP: tl.constexpr,
):
    query_block = first_query_block + tl.program_id(0)
    of_mask = tl.program_id(1).to(tl.int64)
    words = block_mask + of_mask // mask_heads * mask_batch + of_mask % mask_heads * mask_head
    words += query_block.to(tl.int64) * mask_row
    place = of_mask * tl.num_programs(0) + tl.program_id(0)
    q_offset += query_block * q_gap
    first = query_block * BLOCK_Q + q_offset  # positions of the first row, and behind the last one
    stop = tl.minimum(query_block * BLOCK_Q + BLOCK_Q, q_len) + q_offset

    # Key blocks that position and length allow, and those of them that they do not cut.
    begin, end = 0, (kv_len + BLOCK_K - 1) // BLOCK_K
    whole_begin, whole_end = 0, kv_len // BLOCK_K
    if CAUSAL:
        end = tl.minimum(end, (tl.maximum(stop, 0) + BLOCK_K - 1) // BLOCK_K)
        whole_end = tl.minimum(whole_end, tl.maximum(first + 1, 0) // BLOCK_K)
    if HAS_WINDOW:
        begin = tl.maximum(first - window + 1, 0) // BLOCK_K
        whole_begin = (tl.maximum(stop - window, 0) + BLOCK_K - 1) // BLOCK_K
    if HAS_SEGMENT:
        whole_end = 0  # a segment may cut any block

    count = 0
    before = 0
    whole = 0
    for start in range(begin // STEP * STEP, end, STEP):
        block = start + tl.arange(0, STEP)
        inside = (block >= begin) & (block < end)
        word = tl.load(words + block // 32, mask=inside, other=0)
        bit = (word >> (block % 32)) & inside.to(tl.int32)
        tl.store(kept + place * n_key_blocks + count + tl.cumsum(bit, 0) - 1, block, mask=bit != 0)
        count += tl.sum(bit, 0)
        before += tl.sum(bit * (block < whole_begin).to(tl.int32), 0)
        whole += tl.sum(bit * ((block >= whole_begin) & (block < whole_end)).to(tl.int32), 0)
    tl.store(counts + place * 3, before)
    tl.store(counts + place * 3 + 1, whole)
    tl.store(counts + place * 3 + 2, count - before - whole)


@triton.jit
def _add_keys(
    q, keys, values, segments, start, k_row, v_row, kv_len, position, own_segment, window, scale_log2,
    highest, total, acc,
    HEAD_DIM: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    TILE_VALUE_DIM: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    MASKED: tl.constexpr,  # not every row sees every key of the tile, and highest may be exceeded
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
):  # fmt: skip
    """Adds the keys from ``start`` on to the rows' highest scores, sums of exponentials, and outputs."""
    dim, value_dim, entry = tl.arange(0, TILE_DIM), tl.arange(0, TILE_VALUE_DIM), tl.arange(0, TILE_KEYS)
    index = start + entry
    exists = index < kv_len
    places_k = keys + start.to(tl.int64) * k_row + entry[None, :] * k_row + dim[:, None]
    places_v = values + start.to(tl.int64) * v_row + entry[:, None] * v_row + value_dim[None, :]
    if MASKED:
        k = tl.load(places_k, mask=exists[None, :] & (dim < HEAD_DIM)[:, None], other=0.0)
    elif TILE_DIM != HEAD_DIM:
        k = tl.load(places_k, mask=(dim < HEAD_DIM)[:, None], other=0.0)
    else:
        k = tl.load(places_k)
    scores = tl.dot(q, k, input_precision="ieee")
    if MASKED:
        visible = exists[None, :]
        if CAUSAL:
            visible = index[None, :] <= tl.minimum(position, kv_len - 1)[:, None]
        if HAS_WINDOW:
            visible = visible & (index[None, :] > position[:, None] - window)
        if HAS_SEGMENT:
            segment = tl.load(segments + index, mask=exists, other=-1)
            visible = visible & (segment[None, :] == own_segment[:, None]) & (segment >= 0)[None, :]
            # The weight of a key that no row sees is 0, but 0 * NaN is NaN.
            exists = exists & (segment >= 0)
        scores = tl.where(visible, scores, float("-inf"))
        # Scores are compared before they are scaled: the scale is positive.
        higher = tl.maximum(highest, tl.max(scores, 1))
        offset = tl.where(higher == float("-inf"), 0.0, higher)
        correction = tl.exp2((highest - offset) * scale_log2)
        highest, total, acc = higher, total * correction[:, None], acc * correction[:, None]
    else:
        offset = highest
    weights = tl.exp2(scores * scale_log2 - (offset * scale_log2)[:, None])
    if MASKED:
        v = tl.load(places_v, mask=exists[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :], other=0.0)
    elif TILE_VALUE_DIM != VALUE_HEAD_DIM:
        v = tl.load(places_v, mask=(value_dim < VALUE_HEAD_DIM)[None, :], other=0.0)
    else:
        v = tl.load(places_v)
    total += tl.sum(tl.reshape(weights, (total.shape[0], TILE_KEYS // total.shape[1], total.shape[1])), 1)
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
    return highest, total, acc


@triton.jit
def _masked_entry(index, before, whole, cut):
    """Place in the list of the block of number ``index`` where tiles are masked: the cut ones come first."""
    return tl.where(index < before, index, tl.where(index < cut, index + whole, index - cut + before))


@triton.jit
def _attend(
    query,
    key,
    value,
    kept,  # as _list_blocks wrote them
    counts,
    query_segment,
    key_segment,
    sinks,
    out,
    lse,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    list_batch,
    list_head,
    query_segment_batch,
    key_segment_batch,
    sink_head,
    q_heads,
    group,
    n_key_blocks,
    q_len,
    kv_len,
    q_offset,
    q_gap,
    window,
    scale_log2,
    first_tile,
    HEAD_DIM: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    TILE_VALUE_DIM: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_QUERY_SEGMENT: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    STAGES: tl.constexpr,
    MASKED_STAGES: tl.constexpr,
    TILES_BEFORE: tl.constexpr,  # that are masked although their blocks are not cut
    LARGEST_TOTAL: tl.constexpr,
):
    # Long rows first: the last tiles have the most keys under a causal mask.
    of_group = tl.num_programs(0) - 1 - tl.program_id(0)
    tile = first_tile + of_group
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // q_heads, batch_head % q_heads
    row = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    position = row + q_offset + tile * TILE_ROWS // BLOCK_Q * q_gap
    dim, value_dim = tl.arange(0, TILE_DIM), tl.arange(0, TILE_VALUE_DIM)
    q = tl.load(
        query + batch * q_batch + head * q_head + row[:, None].to(tl.int64) * q_row + dim[None, :],
        mask=(row < q_len)[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    own_segment = tl.zeros((TILE_ROWS,), tl.int32)
    if HAS_QUERY_SEGMENT:
        own_segment = tl.load(query_segment + batch * query_segment_batch + row, mask=row < q_len, other=0)
    keys = key + batch * k_batch + (head // group) * k_head
    values = value + batch * v_batch + (head // group) * v_head
    segments = key_segment + batch * key_segment_batch if HAS_SEGMENT else key_segment
    place = batch * list_batch + head * list_head + of_group * TILE_ROWS // BLOCK_Q
    kept += place * n_key_blocks
    before, whole = tl.load(counts + place * 3), tl.load(counts + place * 3 + 1)
    cut = before + tl.load(counts + place * 3 + 2)

    PARTS: tl.constexpr = BLOCK_K // TILE_KEYS
    LANES: tl.constexpr = 8  # sums of a row that no other thread adds to: the matrix unit's columns repeat
    highest = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((TILE_ROWS, LANES), tl.float32)
    acc = tl.zeros((TILE_ROWS, TILE_VALUE_DIM), tl.float32)
    every = (cut + whole) * PARTS
    # The highest score of masked tiles, those of blocks that are cut, serves the others. Where a row has
    # none, one more is masked; where it turns out too low, all is done again with all tiles masked.
    done, masked, again = 0, tl.minimum(cut * PARTS + TILES_BEFORE, every), True
    while again:
        # A step ahead the next block is read, so that its keys and values can be fetched further ahead.
        block = tl.load(kept + _masked_entry(done // PARTS, before, whole, cut), mask=done < masked, other=0)
        for part in tl.range(done, masked, num_stages=MASKED_STAGES):
            start = block * BLOCK_K + part % PARTS * TILE_KEYS
            entry = _masked_entry((part + 1) // PARTS, before, whole, cut)
            block = tl.load(kept + entry, mask=part + 1 < masked, other=0)
            highest, total, acc = _add_keys(
                q, keys, values, segments, start, k_row, v_row, kv_len, position, own_segment, window,
                scale_log2, highest, total, acc, HEAD_DIM, VALUE_HEAD_DIM, TILE_DIM, TILE_VALUE_DIM,
                TILE_KEYS, True, CAUSAL, HAS_WINDOW, HAS_SEGMENT,
            )  # fmt: skip
        first = masked - cut * PARTS
        ready = (masked == every) | (tl.min(highest, 0) > float("-inf"))
        stop = tl.where(ready, whole * PARTS, first)
        block = tl.load(kept + before + first // PARTS, mask=first < stop, other=0)
        for part in tl.range(first, stop, num_stages=STAGES):
            start = block * BLOCK_K + part % PARTS * TILE_KEYS
            block = tl.load(kept + before + (part + 1) // PARTS, mask=part + 1 < stop, other=0)
            highest, total, acc = _add_keys(
                q, keys, values, segments, start, k_row, v_row, kv_len, position, own_segment, window,
                scale_log2, highest, total, acc, HEAD_DIM, VALUE_HEAD_DIM, TILE_DIM, TILE_VALUE_DIM,
                TILE_KEYS, False, CAUSAL, HAS_WINDOW, HAS_SEGMENT,
            )  # fmt: skip
        done = masked
        masked += 1
        again = not ready
        # Not for totals that are no numbers.
        if (first < stop) & (tl.max((tl.max(total, 1) > LARGEST_TOTAL).to(tl.int32), 0) != 0):
            done, masked, again = 0, every, True
            highest = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
            total = tl.zeros((TILE_ROWS, LANES), tl.float32)
            acc = tl.zeros((TILE_ROWS, TILE_VALUE_DIM), tl.float32)

    total = tl.sum(total, 1)
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    highest = tl.where(seen, highest * scale_log2, 0.0)
    result = (highest + tl.log2(total)) * 0.6931471805599453
    if HAS_SINKS:
        total += tl.exp2(tl.load(sinks + head * sink_head) * 1.4426950408889634 - highest)
    out_row = (batch * q_len + row[:, None]) * q_heads + head
    tl.store(
        out + out_row * VALUE_HEAD_DIM + value_dim[None, :],
        (acc / total[:, None]).to(out.dtype.element_ty),
        mask=(row < q_len)[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
    )
    tl.store(lse + batch_head * q_len + row, tl.where(seen, result, float("-inf")), mask=row < q_len)


def block_sparse_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    """The op ``block_sparse_attention`` (see ``op``). Two launches a group; no host synchronisation."""
    batch, q_heads, q_len, head_dim = a.query.shape
    kv_heads, kv_len, value_head_dim = a.value.shape[1:]
    out, lse = new_outputs(a)
    if lse.numel() == 0:
        return out, lse
    query, key, value = readable(a.query), readable(a.key), readable(a.value)
    block_mask, block_q, block_k = a.block_mask.contiguous(), a.block_q, a.block_k
    query_segment, key_segment = a.query_segment, a.key_segment
    if query_segment is not None and key_segment is None:
        key_segment = query_segment.new_zeros((1, kv_len))

    dims = tile_dim(head_dim), tile_dim(value_head_dim)
    shared = shared_memory(query.device) if query.is_cuda else 1 << 20  # in Triton's interpreter
    tile = tile_that_fits(query.element_size(), *dims, shared)
    rows = min(tile.rows, block_q)
    n_key_blocks, n_query_blocks = ceil_div(kv_len, block_k), ceil_div(q_len, block_q)
    mask_batches, mask_heads = block_mask.shape[:2]
    lists = mask_batches * mask_heads
    most, groups = groups_that_fit(n_query_blocks, 4 * lists * n_key_blocks, SCRATCH_BYTES)
    kept = block_mask.new_empty((lists, most, n_key_blocks))
    counts = block_mask.new_empty((lists, most, 3))
    q_gap = (a.q_stride - 1) * block_q
    for first, count in groups:
        _list_blocks[(count, lists)](
            block_mask,
            kept,
            counts,
            *block_mask.stride()[:3],
            mask_heads,
            n_key_blocks,
            q_len,
            kv_len,
            a.q_offset,
            q_gap,
            a.window,
            first,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            CAUSAL=a.causal,
            HAS_WINDOW=a.window > 0,
            HAS_SEGMENT=key_segment is not None,
            STEP=min(1024, max(32, triton.next_power_of_2(n_key_blocks))),
            num_warps=4,
        )
        group_rows = min(q_len - first * block_q, count * block_q)
        _attend[(ceil_div(group_rows, rows), batch * q_heads)](
            query,
            key,
            value,
            kept,
            counts,
            query_segment,
            key_segment,
            a.sinks,
            out,
            lse,
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            0 if mask_batches == 1 else mask_heads * count,
            0 if mask_heads == 1 else count,
            batch_stride(query_segment),
            batch_stride(key_segment),
            batch_stride(a.sinks),
            q_heads,
            q_heads // kv_heads,
            n_key_blocks,
            q_len,
            kv_len,
            a.q_offset,
            q_gap,
            a.window,
            a.scale * LOG2_E,
            first * block_q // rows,
            HEAD_DIM=head_dim,
            VALUE_HEAD_DIM=value_head_dim,
            TILE_DIM=dims[0],
            TILE_VALUE_DIM=dims[1],
            TILE_ROWS=rows,
            TILE_KEYS=min(tile.keys, block_k),
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            CAUSAL=a.causal,
            HAS_WINDOW=a.window > 0,
            HAS_QUERY_SEGMENT=query_segment is not None,
            HAS_SEGMENT=key_segment is not None,
            HAS_SINKS=a.sinks is not None,
            STAGES=tile.stages,
            MASKED_STAGES=tile.stages if key_segment is not None else MASKED_STAGES,
            # A half precision number holds little: the first tile tells how high scores may be.
            TILES_BEFORE=int(query.dtype == torch.float16),
            LARGEST_TOTAL=LARGEST_TOTAL[query.dtype],
            num_warps=tile.warps(dims[1]),
        )
    return out, lse
