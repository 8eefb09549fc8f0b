"""``block_representatives`` in Triton: the portable path.

A first kernel writes the products of a block's keys with each other; the second, a warp a block, then only
reads one row of them for each landmark that it chooses, and no step waits for another warp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..defaults import LANDMARK_TAKEN
from ..shared.shapes import ceil_div
from ..shared.triton import batch_stride, groups_that_fit, readable, tile_dim, visible_and_sinks
from .op import Arguments, new_results

SCRATCH_BYTES = 256 << 20
STAGES = 4


@triton.jit
def _multiply(
    key,
    key_segment,
    products,  # fp32 [B * Hkv, blocks of the group, BLOCK_K, BLOCK_K]
    k_batch,
    k_head,
    k_row,
    segment_batch,
    kv_heads,
    kv_len,
    first_block,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products of a block's keys with each other, 0 for those that are padding."""
    block, batch_head = first_block + tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head = batch_head // kv_heads, batch_head % kv_heads
    dim, entry = tl.arange(0, TILE_DIM), tl.arange(0, BLOCK_K)
    index = block * BLOCK_K + entry
    valid = index < kv_len
    if HAS_SEGMENT:
        valid = valid & (tl.load(key_segment + batch * segment_batch + index, mask=valid, other=-1) == 0)
    at = key + batch * k_batch + head * k_head + index[:, None].to(tl.int64) * k_row + dim[None, :]
    k = tl.load(at, mask=valid[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
    place = (batch_head * tl.num_programs(0) + tl.program_id(0)) * BLOCK_K * BLOCK_K
    product = tl.dot(k, tl.trans(k), input_precision=PRECISION)
    tl.store(products + place + entry[:, None] * BLOCK_K + entry[None, :], product)


@triton.jit
def _rows_of_step(
    keys, words, start, dim, k_row, kv_len, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr
):
    """A step's keys, 0 behind ``kv_len`` and the head dim, and whether their bits are set in ``words``."""
    row = start + tl.arange(0, ROWS)
    k = tl.load(
        keys + row[:, None] * k_row + dim[None, :],
        mask=(row < kv_len)[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    word = tl.sum(tl.where(tl.arange(0, WORDS) == start // 32, words, 0), 0)
    return k.to(tl.float32), ((word >> (row % 32)) & 1)[:, None] != 0


@triton.jit
def _choose(
    key,
    key_segment,
    products,
    first_blocks,  # int32 [B|1] beside key_segment: the first block that holds a valid key
    representatives,  # [B, Hkv, 1 + landmarks, n_key_blocks, D]
    log_weights,  # [B, Hkv, 1 + landmarks, n_key_blocks], as is spreads
    spreads,
    k_batch,
    k_head,
    k_row,
    segment_batch,
    first_batch,
    kv_heads,
    kv_len,
    n_key_blocks,
    landmarks,
    first_of_group,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MARKS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    TAKEN: tl.constexpr,
):
    """The landmarks of a block, the mean of its other keys and their spread; one warp."""
    block, batch_head = first_of_group + tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head = batch_head // kv_heads, batch_head % kv_heads
    dim, entry, before = tl.arange(0, TILE_DIM), tl.arange(0, BLOCK_K), tl.arange(0, MARKS)
    index = block * BLOCK_K + entry
    valid = index < kv_len
    if HAS_SEGMENT:
        valid = valid & (tl.load(key_segment + batch * segment_batch + index, mask=valid, other=-1) == 0)
    keys = key + batch * k_batch + head * k_head + (block * BLOCK_K).to(tl.int64) * k_row
    products += (batch_head * tl.num_programs(0) + tl.program_id(0)) * BLOCK_K * BLOCK_K
    left = tl.load(products + entry * (BLOCK_K + 1))
    left = tl.where(valid, left, -1.0)  # of the squared norms; below 0: no key, or chosen
    count = tl.sum(valid.to(tl.int32), 0)
    first = batch_head * (1 + landmarks) * n_key_blocks + block
    first_block = tl.load(first_blocks + batch * first_batch) if HAS_SEGMENT else 0
    # What was left of the keys' products with each landmark, over the root of what was left of its norm.
    columns = tl.zeros((MARKS, BLOCK_K), tl.float32)
    for mark in range(1, landmarks + 1):
        place = first + mark * n_key_blocks
        strongest = tl.argmax(left, 0)  # of equal ones the first
        if (mark == 1) & (block == first_block):
            strongest = tl.argmax(valid.to(tl.int32), 0)  # the prompt's first key
        exists = count >= mark
        landmark = tl.load(
            keys + strongest * k_row + dim, mask=dim < tl.where(exists, HEAD_DIM, 0), other=0.0
        )
        tl.store(representatives + place * HEAD_DIM + dim, landmark, mask=dim < HEAD_DIM)
        tl.store(log_weights + place, tl.where(exists, 0.0, float("-inf")))
        tl.store(spreads + place, 0.0)
        chosen = entry == strongest
        norm = tl.maximum(tl.sum(tl.where(chosen, left, 0.0), 0), 1.1754943508222875e-38)
        column = tl.load(products + strongest * BLOCK_K + entry)
        of_landmark = tl.gather(columns, tl.full((MARKS, 1), 0, tl.int32) + strongest, 1)
        column -= TAKEN * tl.sum(columns * of_landmark, 0)
        column = column * tl.rsqrt(norm)
        left = tl.where(left >= 0, tl.maximum(left - TAKEN * column * column, 0.0), left)
        left = tl.where(chosen, -1.0, left)
        columns = tl.where((before == mark - 1)[:, None], column[None, :], columns)
    others = (left >= 0).to(tl.int32)
    number = tl.sum(others, 0)
    divisor = tl.maximum(number, 1).to(tl.float32)
    # A bit each, so that a step finds those of its rows without asking the other threads.
    BITS: tl.constexpr = min(BLOCK_K, 32)
    WORDS: tl.constexpr = BLOCK_K // BITS
    words = tl.sum(tl.reshape(others, (WORDS, BITS)) << tl.arange(0, BITS)[None, :], 1)
    # Sums by row of a step until the end. What is loaded depends on nothing, so that it is fetched ahead.
    sums = tl.zeros((ROWS, TILE_DIM), tl.float32)
    for start in tl.range(0, BLOCK_K, ROWS, num_stages=STAGES):
        k, other = _rows_of_step(
            keys, words, start, dim, k_row, kv_len - block * BLOCK_K, HEAD_DIM, ROWS, WORDS
        )
        sums += tl.where(other, k, 0.0)
    mean = tl.sum(sums, 0) / divisor
    squares = tl.zeros((ROWS, TILE_DIM), tl.float32)
    for start in tl.range(0, BLOCK_K, ROWS, num_stages=STAGES):
        k, other = _rows_of_step(
            keys, words, start, dim, k_row, kv_len - block * BLOCK_K, HEAD_DIM, ROWS, WORDS
        )
        distance = tl.where(other, k - mean[None, :], 0.0)
        squares += distance * distance
    tl.store(
        representatives + first * HEAD_DIM + dim,
        mean.to(representatives.dtype.element_ty),
        mask=dim < HEAD_DIM,
    )
    tl.store(log_weights + first, tl.where(number > 0, tl.log(divisor), float("-inf")))
    tl.store(spreads + first, tl.sum(tl.sum(squares, 1), 0) / (divisor * HEAD_DIM))


def block_representatives(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The op ``block_representatives`` (see ``op``). Two launches a group; no host synchronisation."""
    key, key_segment, block_k, landmarks = a
    batch, kv_heads, kv_len, head_dim = key.shape
    n_key_blocks = ceil_div(kv_len, block_k)
    representatives, log_weights, spreads = new_results(a)
    if log_weights.numel() == 0:
        return representatives, log_weights, spreads
    key = readable(key)
    first_blocks = None
    if key_segment is not None:
        _, first_blocks = visible_and_sinks(key_segment, n_key_blocks, block_k, True, key.device)
    most, groups = groups_that_fit(n_key_blocks, 4 * batch * kv_heads * block_k * block_k, SCRATCH_BYTES)
    products = key.new_empty((batch * kv_heads, most, block_k, block_k), dtype=torch.float32)
    for first, count in groups:
        _multiply[(count, batch * kv_heads)](
            key,
            key_segment,
            products,
            *key.stride()[:3],
            batch_stride(key_segment),
            kv_heads,
            kv_len,
            first,
            HEAD_DIM=head_dim,
            TILE_DIM=tile_dim(head_dim),
            BLOCK_K=block_k,
            HAS_SEGMENT=key_segment is not None,
            PRECISION="ieee",
            num_warps=8,
        )
        _choose[(count, batch * kv_heads)](
            key,
            key_segment,
            products,
            first_blocks,
            representatives,
            log_weights,
            spreads,
            *key.stride()[:3],
            batch_stride(key_segment),
            batch_stride(first_blocks),
            kv_heads,
            kv_len,
            n_key_blocks,
            landmarks,
            first,
            HEAD_DIM=head_dim,
            TILE_DIM=tile_dim(head_dim),
            BLOCK_K=block_k,
            MARKS=max(2, triton.next_power_of_2(landmarks)),
            ROWS=min(block_k, 8),
            STAGES=STAGES,
            HAS_SEGMENT=key_segment is not None,
            TAKEN=LANDMARK_TAKEN,
            num_warps=1,
        )
    return representatives, log_weights, spreads
