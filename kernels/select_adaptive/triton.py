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

from ..choice import shared_memory
from ..defaults import LANDMARK_GROUPS
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
from .triton_bits import WORDS, write_bits
from .triton_codes import codes_of
from .triton_rows import (
    COLUMNS,
    MEMBERS_AT_ONCE,
    REGISTERS,
    SCRATCH_BYTES,
    TILES,
    exact_keys,
    own_blocks,
    store_row_codes,
    tile_that_fits,
)

FARTHEST = (
    40.0  # scores above a row's offset, base 2: of squares the inverse of their sum's square is a float
)


@triton.jit
def _terms(terms, tile, TILE_BLOCKS: tl.constexpr):
    """Of a tile's blocks what their bytes are multiples of, and the spread and the weight of their means."""
    terms += tile * (3 * TILE_BLOCKS) + tl.arange(0, TILE_BLOCKS)
    return tl.load(terms), tl.load(terms + TILE_BLOCKS), tl.load(terms + 2 * TILE_BLOCKS)


@triton.jit
def _largest(products, counts):
    """Over the members that count, one number for every row and block."""
    return tl.max(tl.where(counts, products, -2147483648), 1)


@triton.jit
def _landmark_terms(most, worth, shift, mass, square, peak, WHOLE: tl.constexpr):
    """Adds the exponentials of a group's largest products."""
    score = most.to(tl.float32) * worth + shift
    if not WHOLE:
        score = tl.where(most == -2147483648, float("-inf"), score)
    term = tl.exp2(score)
    return mass + term, square + term * term, tl.maximum(peak, score)


@triton.jit
def _score_blocks(
    query,
    key,
    representatives,
    codes,  # as codes_of makes them, as are terms
    terms,
    landmarks,  # int32 [B, Hkv, n_key_blocks]: how many the block has; not read if WHOLE
    key_segment,
    ends,
    all_row_codes,  # int8 [B * Hq, query blocks of the group, BLOCK_Q, CODE_DIM]
    squares,  # bf16 [B * Hq, query blocks of the group, tiles, BLOCK_Q, TILE_BLOCKS]
    inverses,  # fp32 [B * Hq, query blocks of the group, BLOCK_Q]: what squares become shares with; 0: none
    sink_logits,  # fp32 [Hq|1]: of a head, a logit that has its share of each row's attention; or None
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    segment_batch,
    ends_batch,
    sink_stride,
    q_heads,
    group,
    q_len,
    kv_len,
    q_offset,
    q_gap,  # from a query block's end to the next one's beginning
    first_query_block,
    n_key_blocks,
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
    CHUNK: tl.constexpr,  # members of each block of a tile in a product
    WHOLE: tl.constexpr,  # every block before a query block's own has all its landmarks
    HAS_SEGMENT: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    LOG2_E: tl.constexpr,
    FARTHEST: tl.constexpr,
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
    end = row_end(ends, batch, ends_batch, q_len, HAS_SEGMENT)
    row_stop = block_stop(q_block * BLOCK_Q, end, q_len, BLOCK_Q)
    whole = holds_last_row(row_stop, end, last_rows)
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

    numbers = q.to(tl.float32)
    half_norm = tl.sum(numbers * numbers, 1) * (0.5 * scale * scale_log2)
    first_mean = representatives + kv_head * MEMBERS * n_key_blocks * HEAD_DIM
    common = tl.load(first_mean + dim, mask=dim < HEAD_DIM, other=0.0)
    base = tl.sum(numbers * common.to(tl.float32)[None, :], 1) * scale_log2
    largest = tl.max(tl.abs(numbers), 1)
    row_unit = largest * (scale_log2 / 127.0)
    place_of_group = batch_head * tl.num_programs(0) + of_group
    slot = place_of_group * BLOCK_Q + tl.arange(0, BLOCK_Q)
    all_row_codes += slot[:, None] * CODE_DIM
    store_row_codes(all_row_codes, numbers, largest, dim, TILE_DIM, CODE_DIM)
    tl.debug_barrier()
    row_codes = tl.load(all_row_codes + tl.arange(0, CODE_DIM)[None, :])

    CHUNKS: tl.constexpr = (MEMBERS + CHUNK - 1) // CHUNK
    COLUMNS: tl.constexpr = CHUNK * TILE_BLOCKS
    codes += kv_head * tiles * (CHUNKS * COLUMNS) * CODE_DIM
    terms += kv_head * tiles * (3 * TILE_BLOCKS)
    codes += tl.arange(0, COLUMNS)[None, :] * CODE_DIM + tl.arange(0, CODE_DIM)[:, None]
    squares += (place_of_group * tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]) * TILE_BLOCKS
    squares += tl.arange(0, TILE_BLOCKS)[None, :]
    USED: tl.constexpr = min(GROUPS, MEMBERS - 1)
    least = tl.full((BLOCK_Q, TILE_BLOCKS), -2147483648, tl.int32)
    # Scores are relative to the highest exact one of their row. Where they exceed it by too much, or there is
    # none, all is done again with the highest.
    offset = tl.where(highest == float("-inf"), 0.0, highest * scale_log2)
    masses = tl.zeros((BLOCK_Q, TILE_BLOCKS), tl.float32)
    again = own > 0
    while again:
        shift = base - offset
        masses = tl.zeros((BLOCK_Q, TILE_BLOCKS), tl.float32)
        peaks = tl.full((BLOCK_Q, TILE_BLOCKS), float("-inf"), tl.float32)
        # Read a step ahead: what is read within a step is waited for before its products.
        next_unit, next_spread, next_weight = _terms(terms, 0, TILE_BLOCKS)
        for tile in range(0, tl.cdiv(own, TILE_BLOCKS)):
            block = tile * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
            unit, spread, weight = next_unit, next_spread, next_weight
            next_unit, next_spread, next_weight = _terms(terms, tl.minimum(tile + 1, tiles - 1), TILE_BLOCKS)
            if not WHOLE:
                marks = tl.load(landmarks + kv_head * n_key_blocks + tl.minimum(block, n_key_blocks - 1))
            most_1, most_2, most_3, mean = least, least, least, least
            for chunk in tl.static_range(CHUNKS):
                products = tl.dot(row_codes, tl.load(codes + (tile * CHUNKS + chunk) * (COLUMNS * CODE_DIM)))
                products = tl.reshape(products, (BLOCK_Q, CHUNK, TILE_BLOCKS))
                member = (chunk * CHUNK + tl.arange(0, CHUNK))[None, :, None]
                exists = (member > 0) & (member < MEMBERS)
                if not WHOLE:
                    exists = exists & (member <= marks[None, None, :])
                if chunk == 0:
                    mean = _largest(products, member == 0)
                most_1 = tl.maximum(most_1, _largest(products, exists & (member % GROUPS == 1)))
                if USED > 1:
                    most_2 = tl.maximum(most_2, _largest(products, exists & (member % GROUPS == 2)))
                if USED > 2:
                    most_3 = tl.maximum(most_3, _largest(products, exists & (member % GROUPS == 0)))
            worth = row_unit[:, None] * unit[None, :]
            number = tl.maximum(weight, 0.0)[None, :]  # log of the keys that the mean stands for, if any
            boost = tl.minimum(half_norm[:, None] * spread[None, :], number)
            of_block = tl.where((block < own)[None, :], shift[:, None], float("-inf"))
            score = mean.to(tl.float32) * worth + (boost + (weight[None, :] + of_block))
            # The keys that the mean stands for share its mass, the less equally the further they spread.
            mass = tl.exp2(score)
            square = tl.exp2(2 * score + tl.minimum(2 * boost - number, 0.0))
            peaks = tl.maximum(peaks, score)
            if USED > 0:
                mass, square, peaks = _landmark_terms(most_1, worth, of_block, mass, square, peaks, WHOLE)
            if USED > 1:
                mass, square, peaks = _landmark_terms(most_2, worth, of_block, mass, square, peaks, WHOLE)
            if USED > 2:
                mass, square, peaks = _landmark_terms(most_3, worth, of_block, mass, square, peaks, WHOLE)
            tl.store(squares + tile * (BLOCK_Q * TILE_BLOCKS), square.to(tl.bfloat16))
            masses += mass
        peak = tl.max(peaks, 1)
        wrong = (peak > FARTHEST) | ((total == 0) & (peak < -FARTHEST) & (peak > float("-inf")))
        higher = tl.where(wrong, offset + peak, offset)
        total = total * tl.exp2(offset - higher)
        offset = higher
        again = tl.max(wrong.to(tl.int32), 0) != 0
    total += tl.sum(masses, 1)
    counts = (row < row_stop) & (total > 0)
    if HAS_SINKS:
        total += tl.exp2(tl.load(sink_logits + head * sink_stride) * LOG2_E - offset)
    total = tl.where(counts, total, 1.0)
    tl.store(inverses + slot, tl.where(counts, 1.0 / (total * total), 0.0))


def select_adaptive(a: Arguments) -> Tensor:
    """The op ``select_adaptive`` (see ``op``). One launch, then two a group; no host synchronisation."""
    batch, q_heads, q_len, head_dim = a.query.shape
    kv_heads, kv_len = a.key.shape[1:3]
    grid, block_q, block_k = Grid.of(a), a.block_q, a.block_k
    n_key_blocks, n_query_blocks, words = grid.n_key_blocks, grid.n_query_blocks, grid.n_words
    block_mask = new_index(a.query, (batch, q_heads), grid)
    if block_mask.numel() == 0 or kv_len == 0:
        return block_mask.zero_()
    query, key = readable(a.query), readable(a.key)
    visible, sinks = visible_and_sinks(a.key_segment, n_key_blocks, block_k, a.keep_sink, query.device)
    ends = ends_of_rows(a.key_segment, q_len, a.q_offset, a.q_stride, block_q)
    # What a query block's own keys come after has all its keys, unless there is padding.
    members = a.representatives.shape[2]
    whole = a.key_segment is None and grid.positions(q_len - 1) < kv_len and members <= block_k
    landmarks = None if whole else (a.log_weights[:, :, 1:] > float("-inf")).sum(2, dtype=torch.int32)
    code_dim, chunk = max(32, tile_dim(head_dim)), min(MEMBERS_AT_ONCE, triton.next_power_of_2(members))
    tile_blocks = COLUMNS // chunk
    tiles = ceil_div(n_key_blocks, tile_blocks)
    representatives, log_weights = a.representatives.contiguous(), a.log_weights.contiguous()
    codes, terms = codes_of(
        representatives, log_weights, a.spreads.contiguous(), tiles, tile_blocks, chunk, code_dim
    )
    per_block = batch * q_heads * block_q * (2 * tiles * tile_blocks + 4 + code_dim)
    most, groups = groups_that_fit(n_query_blocks, per_block, SCRATCH_BYTES)
    row_codes = query.new_empty((batch * q_heads, most, block_q, code_dim), dtype=torch.int8)
    squares = query.new_empty((batch * q_heads, most, tiles, block_q, tile_blocks), dtype=torch.bfloat16)
    inverses = query.new_empty((batch * q_heads, most, block_q), dtype=torch.float32)
    tile_keys, stages = TILES[0]  # in Triton's interpreter
    if query.is_cuda:
        tile_keys, stages = tile_that_fits(code_dim, block_q, shared_memory(query.device))
    # Shared memory has no room for two with wider rows.
    two_at_once = {"maxnreg": REGISTERS} if block_q == 128 and head_dim <= 128 and query.is_cuda else {}
    q_gap = (a.q_stride - 1) * block_q
    for first, count in groups:
        _score_blocks[(count, batch * q_heads)](
            query,
            key,
            representatives,
            codes,
            terms,
            landmarks,
            a.key_segment,
            ends,
            row_codes,
            squares,
            inverses,
            a.sinks,
            *query.stride()[:3],
            *key.stride()[:3],
            batch_stride(a.key_segment),
            batch_stride(ends),
            batch_stride(a.sinks),
            q_heads,
            q_heads // kv_heads,
            q_len,
            kv_len,
            a.q_offset,
            q_gap,
            first,
            n_key_blocks,
            tiles,
            a.last_rows,
            a.scale,
            HEAD_DIM=head_dim,
            TILE_DIM=tile_dim(head_dim),
            CODE_DIM=code_dim,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            TILE_KEYS=min(block_k, tile_keys),
            TILE_BLOCKS=tile_blocks,
            GROUPS=LANDMARK_GROUPS,
            MEMBERS=members,
            CHUNK=chunk,
            WHOLE=whole,
            HAS_SEGMENT=a.key_segment is not None,
            HAS_SINKS=a.sinks is not None,
            PRECISION="ieee",
            LOG2_E=LOG2_E,
            FARTHEST=FARTHEST,
            num_warps=8 if block_q == 128 else 4,
            num_stages=stages,
            **two_at_once,
        )
        write_bits[(count, batch * q_heads, ceil_div(words, WORDS))](
            squares,
            inverses,
            visible,
            sinks,
            ends,
            block_mask,
            batch_stride(visible),
            batch_stride(sinks),
            batch_stride(ends),
            q_heads,
            q_len,
            a.q_offset,
            q_gap,
            first,
            n_query_blocks,
            n_key_blocks,
            tiles,
            words,
            a.window_slashes,
            a.last_rows,
            a.tau,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            WORD_BITS=WORD_BITS,
            WORDS=WORDS,
            TILE_BLOCKS=tile_blocks,
            HAS_SEGMENT=a.key_segment is not None,
            num_warps=8,
        )
    return block_mask
