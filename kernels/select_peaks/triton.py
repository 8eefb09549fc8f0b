"""``select_peaks`` in Triton: the portable path.

A row's total comes first, of few numbers: its own blocks' keys, the landmarks of the prompt's first block,
and a normal distribution for every PEAK_BLOCKS blocks before. With it a row knows which product reaches its
share of attention, so the pass over all landmarks compares products of bytes, as in ``select_adaptive``, with
one number a row: nothing is exponentiated, and nothing but bits is kept. A tile has one bit in a number for
every row and block of a tile; after as many tiles as the number has bits the rows' are put together, into
words that no other thread block writes.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..choice import shared_memory
from ..defaults import PEAK_BLOCKS
from ..select_adaptive.triton_bits import first_forced, store_words
from ..select_adaptive.triton_codes import codes_of
from ..select_adaptive.triton_rows import (
    COLUMNS,
    MEMBERS_AT_ONCE,
    REGISTERS,
    SCRATCH_BYTES,
    TILES,
    add_scores,
    exact_keys,
    own_blocks,
    store_row_codes,
    tile_that_fits,
)
from ..shared.grid import Grid, new_index
from ..shared.shapes import WORD_BITS, ceil_div
from ..shared.triton import (
    LOG2_E,
    batch_stride,
    block_stop,
    ends_of_rows,
    groups_that_fit,
    holds_last_row,
    readable,
    row_end,
    tile_dim,
    visible_and_sinks,
)
from .op import Arguments
from .triton_normals import normals_of


@triton.jit
def _first_landmarks(
    q, representatives, log_weights, highest, total, first, own, members, n_key_blocks, dim, scale_log2,
    HEAD_DIM: tl.constexpr,
    MARKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the scores of block ``first``'s landmarks to rows' highest and totals, if it is before ``own``.

    ``representatives``, ``log_weights``: those of the key head.
    """
    member = 1 + tl.arange(0, MARKS)
    exists = (member < members) & (first < own)
    place = member * n_key_blocks + first
    exists = exists & (tl.load(log_weights + place, mask=exists, other=float("-inf")) > float("-inf"))
    marks = tl.load(
        representatives + place[None, :] * HEAD_DIM + dim[:, None],
        mask=exists[None, :] & (dim < HEAD_DIM)[:, None],
        other=0.0,
    )
    scores = tl.dot(q, marks, input_precision=PRECISION)
    scores = tl.where(exists[None, :], scores, float("-inf"))
    return add_scores(highest, total, scores, scale_log2)


@triton.jit
def _normals(
    q, means, terms, half_norm, highest, total, start, stop, number, dim, scale_log2,
    BLOCK_Q: tl.constexpr,
    TILE_DIM: tl.constexpr,
    NORMALS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the masses of the normals from ``start`` on, before ``stop``; highest is scaled here, base 2."""
    column = tl.arange(0, 2 * NORMALS)
    place = column // NORMALS * number + start + column % NORMALS
    products = tl.dot(q, tl.load(means + place[None, :] * TILE_DIM + dim[:, None]), input_precision=PRECISION)
    product = tl.sum(tl.reshape(products, (BLOCK_Q, 2, NORMALS)), 1)
    at = start + tl.arange(0, NORMALS)
    keys, spread = tl.load(terms + at), tl.load(terms + number + at)
    boost = tl.minimum(half_norm[:, None] * spread[None, :], tl.maximum(keys, 0.0)[None, :])
    scores = product * scale_log2 + (boost + keys[None, :])
    return add_scores(highest, total, tl.where((at < stop)[None, :], scores, float("-inf")), 1.0)


@triton.jit
def _choose_blocks(
    query,
    key,
    representatives,
    log_weights,
    codes,  # as codes_of makes them, of landmarks alone, as are terms
    terms,
    means,  # as normals_of makes them, as are normal_terms
    normal_terms,
    key_segment,
    ends,
    visible,  # int8 [B|1, n_key_blocks]: the block holds a valid key
    first_visible,  # int32 [B|1]: the first such block, or n_key_blocks
    sink_logits,  # fp32 [Hq|1]: of a head, a logit that has its share of each row's attention; or None
    all_row_codes,  # int8 [B * Hq, query blocks of the group, BLOCK_Q, CODE_DIM]
    block_mask,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    segment_batch,
    ends_batch,
    visible_batch,
    first_batch,
    sink_stride,
    q_heads,
    group,
    q_len,
    kv_len,
    q_offset,
    q_gap,  # from a query block's end to the next one's beginning
    first_query_block,
    n_query_blocks,
    n_key_blocks,
    members,
    tiles,
    number,  # of normals
    words,
    window_slashes,
    last_rows,
    scale,
    log2_peak,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    CODE_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    CHUNK: tl.constexpr,  # landmarks of each block of a tile in a product
    CHUNKS: tl.constexpr,
    MARKS: tl.constexpr,
    EIGHT: tl.constexpr,
    WORD_BITS: tl.constexpr,
    KEEP_SINK: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    # Long rows first: the last query blocks have the most key blocks.
    of_group = tl.num_programs(0) - 1 - tl.program_id(0)
    q_block = first_query_block + of_group
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // q_heads, batch_head % q_heads
    kv_head = batch * (q_heads // group) + head // group
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
    representatives += kv_head * members * n_key_blocks * HEAD_DIM
    # What is needed of single numbers comes first: they take half of the registers.
    numbers = q.to(tl.float32)
    half_norm = tl.sum(numbers * numbers, 1) * (0.5 * scale * scale_log2)
    common = tl.load(representatives + dim, mask=dim < HEAD_DIM, other=0.0)
    base = tl.sum(numbers * common.to(tl.float32)[None, :], 1) * scale_log2
    largest = tl.max(tl.abs(numbers), 1)
    slot = (batch_head * tl.num_programs(0) + of_group) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    all_row_codes += slot[:, None] * CODE_DIM
    store_row_codes(all_row_codes, numbers, largest, dim, TILE_DIM, CODE_DIM)

    end = row_end(ends, batch, ends_batch, q_len, HAS_SEGMENT)
    row_stop = block_stop(q_block * BLOCK_Q, end, q_len, BLOCK_Q)
    whole = holds_last_row(row_stop, end, last_rows) | (log2_peak == float("-inf"))
    first_position, last_position = q_block * BLOCK_Q + q_offset, row_stop - 1 + q_offset
    own, stop = own_blocks(first_position, last_position, whole, n_key_blocks, BLOCK_K)

    highest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    keys = key + batch * k_batch + (head // group) * k_head
    segments = key_segment + batch * segment_batch if HAS_SEGMENT else key_segment
    last = tl.minimum(position, kv_len - 1)
    for start in range(own * BLOCK_K, stop * BLOCK_K, TILE_KEYS):
        highest, total = exact_keys(
            q, keys, segments, highest, total, start, last, dim, k_row, scale_log2,
            HEAD_DIM, TILE_KEYS, HAS_SEGMENT, PRECISION,
        )  # fmt: skip
    first = tl.load(first_visible + batch * first_batch)
    highest, total = _first_landmarks(
        q, representatives, log_weights + kv_head * members * n_key_blocks, highest, total, first, own,
        members, n_key_blocks, dim, scale_log2, HEAD_DIM, MARKS, PRECISION,
    )  # fmt: skip
    highest *= scale_log2
    NORMALS: tl.constexpr = TILE_KEYS // 2
    for start in range(0, own // EIGHT, NORMALS):
        highest, total = _normals(
            q, means + kv_head * 2 * number * TILE_DIM, normal_terms + kv_head * 2 * number, half_norm,
            highest, total, start, own // EIGHT, number, dim, scale_log2,
            BLOCK_Q, TILE_DIM, NORMALS, PRECISION,
        )  # fmt: skip

    counts = (row < row_stop) & (total > 0)
    log_total = highest + tl.log2(tl.where(counts, total, 1.0))
    if HAS_SINKS:
        sink_logit = tl.load(sink_logits + head * sink_stride) * LOG2_E
        smaller = tl.exp2(-tl.abs(log_total - sink_logit))
        log_total = tl.maximum(log_total, sink_logit) + tl.log2(1.0 + smaller)
    least = tl.where(counts, log_total + log2_peak - base, float("inf"))
    row_unit = largest * (scale_log2 / 127.0)
    no_unit = tl.where(least > 0, float("inf"), float("-inf"))
    bound = tl.where(row_unit > 0, least / tl.where(row_unit > 0, row_unit, 1.0), no_unit)
    tl.debug_barrier()
    row_codes = tl.load(all_row_codes + tl.arange(0, CODE_DIM)[None, :])

    COLUMNS: tl.constexpr = CHUNK * TILE_BLOCKS
    codes += kv_head * tiles * (CHUNKS * COLUMNS) * CODE_DIM
    codes += tl.arange(0, COLUMNS)[None, :] * CODE_DIM + tl.arange(0, CODE_DIM)[:, None]
    units = terms + kv_head * tiles * (3 * TILE_BLOCKS) + tl.arange(0, TILE_BLOCKS)
    kept = first_forced(first_position, whole, window_slashes, n_key_blocks, BLOCK_K)
    sink = first if KEEP_SINK else n_key_blocks
    visible += batch * visible_batch
    block_mask += (batch_head * n_query_blocks + q_block) * words
    for word in range(0, words, TILE_BLOCKS):
        first_tile = word * WORD_BITS // TILE_BLOCKS
        last_tile = tl.minimum(first_tile + WORD_BITS, tl.cdiv(kept, TILE_BLOCKS))
        bits = tl.zeros((BLOCK_Q, TILE_BLOCKS), tl.int32)
        # Read a step ahead: what is read within a step is waited for before its products.
        next_unit = tl.load(units + tl.minimum(first_tile, tiles - 1) * (3 * TILE_BLOCKS))
        for tile in range(first_tile, last_tile):
            unit = next_unit
            next_unit = tl.load(units + tl.minimum(tile + 1, tiles - 1) * (3 * TILE_BLOCKS))
            most = tl.full((BLOCK_Q, TILE_BLOCKS), -2147483648, tl.int32)
            for chunk in tl.static_range(CHUNKS):
                products = tl.dot(row_codes, tl.load(codes + (tile * CHUNKS + chunk) * (COLUMNS * CODE_DIM)))
                most = tl.maximum(most, tl.max(tl.reshape(products, (BLOCK_Q, CHUNK, TILE_BLOCKS)), 1))
            reached = most.to(tl.float32) * unit[None, :] >= bound[:, None]
            bits = tl.where(reached, bits | (1 << (tile - first_tile)), bits)
        of_rows = tl.reduce_or(bits, 0)
        found = ((of_rows[None, :] >> tl.arange(0, WORD_BITS)[:, None]) & 1) != 0
        store_words(
            tl.reshape(found, (TILE_BLOCKS, WORD_BITS)), word + tl.arange(0, TILE_BLOCKS), block_mask, words,
            visible, sink, kept, last_position, n_key_blocks, BLOCK_K, WORD_BITS,
        )  # fmt: skip


def select_peaks(a: Arguments) -> Tensor:
    """The op ``select_peaks`` (see ``op``). Two launches, then one a group; no host synchronisation."""
    batch, q_heads, q_len, head_dim = a.query.shape
    kv_heads, kv_len = a.key.shape[1:3]
    grid, block_q, block_k = Grid.of(a), a.block_q, a.block_k
    n_key_blocks, n_query_blocks, words = grid.n_key_blocks, grid.n_query_blocks, grid.n_words
    block_mask = new_index(a.query, (batch, q_heads), grid)
    if block_mask.numel() == 0 or kv_len == 0:
        return block_mask.zero_()
    query, key = readable(a.query), readable(a.key)
    visible, first_visible = visible_and_sinks(a.key_segment, n_key_blocks, block_k, True, query.device)
    ends = ends_of_rows(a.key_segment, q_len, a.q_offset, a.q_stride, block_q)
    landmarks = a.representatives.shape[2] - 1
    code_dim, chunk = max(32, tile_dim(head_dim)), min(MEMBERS_AT_ONCE, triton.next_power_of_2(landmarks))
    tile_blocks = COLUMNS // chunk
    tiles = ceil_div(n_key_blocks, tile_blocks)
    given = a.representatives.contiguous(), a.log_weights.contiguous(), a.spreads.contiguous()
    codes, terms = codes_of(*given, tiles, tile_blocks, chunk, code_dim, means=False)
    means, normal_terms = normals_of(*given, tile_dim(head_dim))
    most, groups = groups_that_fit(n_query_blocks, batch * q_heads * block_q * code_dim, SCRATCH_BYTES)
    row_codes = query.new_empty((batch * q_heads, most, block_q, code_dim), dtype=torch.int8)
    tile_keys, stages = TILES[0]  # in Triton's interpreter
    if query.is_cuda:
        tile_keys, stages = tile_that_fits(code_dim, block_q, shared_memory(query.device))
    # Shared memory has no room for two with wider rows.
    two_at_once = {"maxnreg": REGISTERS} if block_q == 128 and head_dim <= 128 and query.is_cuda else {}
    for first, count in groups:
        _choose_blocks[(count, batch * q_heads)](
            query,
            key,
            *given[:2],
            codes,
            terms,
            means,
            normal_terms,
            a.key_segment,
            ends,
            visible,
            first_visible,
            a.sinks,
            row_codes,
            block_mask,
            *query.stride()[:3],
            *key.stride()[:3],
            batch_stride(a.key_segment),
            batch_stride(ends),
            batch_stride(visible),
            batch_stride(first_visible),
            batch_stride(a.sinks),
            q_heads,
            q_heads // kv_heads,
            q_len,
            kv_len,
            a.q_offset,
            (a.q_stride - 1) * block_q,
            first,
            n_query_blocks,
            n_key_blocks,
            landmarks + 1,
            tiles,
            means.shape[2],
            words,
            a.window_slashes,
            a.last_rows,
            a.scale,
            math.log2(a.peak) if a.peak > 0 else -math.inf,
            HEAD_DIM=head_dim,
            TILE_DIM=tile_dim(head_dim),
            CODE_DIM=code_dim,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            TILE_KEYS=min(block_k, tile_keys),
            TILE_BLOCKS=tile_blocks,
            CHUNK=chunk,
            CHUNKS=ceil_div(landmarks, chunk),
            MARKS=max(16, triton.next_power_of_2(landmarks)),
            EIGHT=PEAK_BLOCKS,
            WORD_BITS=WORD_BITS,
            KEEP_SINK=a.keep_sink,
            HAS_SEGMENT=a.key_segment is not None,
            HAS_SINKS=a.sinks is not None,
            PRECISION="ieee",
            LOG2_E=LOG2_E,
            num_warps=8 if block_q == 128 else 4,
            num_stages=stages,
            **two_at_once,
        )
    return block_mask
