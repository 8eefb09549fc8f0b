"""Representatives as bytes, which a matrix unit multiplies twice as fast (``reference.byte_product``)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.shapes import ceil_div
from ..shared.triton import LOG2_E


@triton.jit
def rounded(x):
    """To the nearest integer, halves to even, of numbers below 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def code_factor(largest):
    """What brings numbers of at most ``largest`` to 127."""
    return tl.where(largest > 0, 127.0 / tl.where(largest > 0, largest, 1.0), 0.0)


@triton.jit
def _write_codes(
    representatives,
    log_weights,
    spreads,
    codes,  # int8 [B * Hkv, tiles, chunks, CHUNK, TILE_BLOCKS, CODE_DIM]
    terms,  # fp32 [B * Hkv, tiles, 3, TILE_BLOCKS]
    n_key_blocks,
    members,
    chunks,
    HEAD_DIM: tl.constexpr,
    CODE_DIM: tl.constexpr,
    MEMBERS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    CHUNK: tl.constexpr,
    MEANS: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """The representatives of a block, less the head's common key: the mean of its first block."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    dim, slot = tl.arange(0, CODE_DIM), tl.arange(0, MEMBERS)
    first = head * members * n_key_blocks + block
    member = slot if MEANS else slot + 1
    exists = (member < members) & (block < n_key_blocks)
    weight = tl.load(log_weights + first + member * n_key_blocks, mask=exists, other=float("-inf"))
    exists = exists & (weight > float("-inf"))
    if not MEANS:
        member = tl.where(exists, member, 1)
        exists = exists | (tl.max(exists.to(tl.int32), 0) > 0)
    place = first + member * n_key_blocks
    loaded = exists[:, None] & (dim < HEAD_DIM)[None, :]
    first_mean = representatives + head * members * n_key_blocks * HEAD_DIM
    common = tl.load(first_mean + dim, mask=dim < HEAD_DIM, other=0.0)
    own = tl.load(representatives + place[:, None] * HEAD_DIM + dim[None, :], mask=loaded, other=0.0)
    difference = tl.where(loaded, own.to(tl.float32) - common.to(tl.float32)[None, :], 0.0)
    largest = tl.max(tl.max(tl.abs(difference), 1), 0)
    code = rounded(difference * code_factor(largest)).to(tl.int8)
    tile = head * (tl.num_programs(0) // TILE_BLOCKS) + block // TILE_BLOCKS
    to = (tile * chunks * CHUNK + slot) * TILE_BLOCKS + block % TILE_BLOCKS
    tl.store(codes + to[:, None] * CODE_DIM + dim[None, :], code, mask=(slot < chunks * CHUNK)[:, None])
    terms += tile * 3 * TILE_BLOCKS + block % TILE_BLOCKS
    tl.store(terms, largest / 127.0)
    tl.store(terms + TILE_BLOCKS, tl.load(spreads + first, mask=block < n_key_blocks, other=0.0))
    of_mean = tl.load(log_weights + first, mask=block < n_key_blocks, other=float("-inf"))
    tl.store(terms + 2 * TILE_BLOCKS, of_mean * LOG2_E)


def codes_of(
    representatives: Tensor,
    log_weights: Tensor,
    spreads: Tensor,
    tiles: int,
    tile_blocks: int,
    chunk: int,
    code_dim: int,
    means: bool = True,
) -> tuple[Tensor, Tensor]:
    """int8 [B * Hkv, tiles, chunks, chunk, tile_blocks, code_dim], and fp32 [B * Hkv, tiles, 3, tile_blocks].

    Of contiguous representatives [B, Hkv, members, n_key_blocks, D], their log_weights and spreads: bytes of
    ``chunk`` members of each block of a tile; and of a block what its bytes are multiples of, the spread of
    its mean and the mean's weight, base 2. Without ``means`` of landmarks alone: where a block has no more of
    them, the first stands again, which changes no largest. One launch.
    """
    batch, kv_heads, members, n_key_blocks, head_dim = representatives.shape
    coded = members if means else members - 1
    chunks = ceil_div(coded, chunk)
    shape = (batch * kv_heads, tiles, chunks, chunk, tile_blocks, code_dim)
    codes = representatives.new_empty(shape, dtype=torch.int8)
    terms = representatives.new_empty((batch * kv_heads, tiles, 3, tile_blocks), dtype=torch.float32)
    _write_codes[(tiles * tile_blocks, batch * kv_heads)](
        representatives,
        log_weights,
        spreads,
        codes,
        terms,
        n_key_blocks,
        members,
        chunks,
        HEAD_DIM=head_dim,
        CODE_DIM=code_dim,
        MEMBERS=triton.next_power_of_2(coded),
        TILE_BLOCKS=tile_blocks,
        CHUNK=chunk,
        MEANS=means,
        LOG2_E=LOG2_E,
        num_warps=1,
    )
    return codes, terms
