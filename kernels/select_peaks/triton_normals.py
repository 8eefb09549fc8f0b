"""Key blocks before a query block's own as normal distributions, PEAK_BLOCKS of them each."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..defaults import PEAK_BLOCKS
from ..select_adaptive.triton_rows import TILES
from ..shared.shapes import ceil_div


@triton.jit
def _write_normals(
    representatives,
    log_weights,
    spreads,
    means,  # [B * Hkv, 2, number, TILE_DIM]
    terms,  # fp32 [B * Hkv, 2, number]
    n_key_blocks,
    members,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    at, number = tl.program_id(0), tl.num_programs(0)
    head = tl.program_id(1).to(tl.int64)
    block, dim = at * BLOCKS + tl.arange(0, BLOCKS), tl.arange(0, TILE_DIM)
    exists = block < n_key_blocks
    place = head * members * n_key_blocks + block
    keys = tl.exp(tl.load(log_weights + place, mask=exists, other=float("-inf")))
    of_all = tl.sum(keys, 0)
    share = keys / tl.maximum(of_all, 1.0)
    loaded = exists[:, None] & (dim < HEAD_DIM)[None, :]
    own = tl.load(representatives + place[:, None] * HEAD_DIM + dim[None, :], mask=loaded, other=0.0)
    own = own.to(tl.float32)
    mean = tl.sum(share[:, None] * own, 0)
    apart = own - mean[None, :]
    spread = tl.load(spreads + place, mask=exists, other=0.0) + tl.sum(apart * apart, 1) / HEAD_DIM
    high = mean.to(means.dtype.element_ty)
    means += (head * 2 * number + at) * TILE_DIM + dim
    tl.store(means, high)
    tl.store(means + number * TILE_DIM, (mean - high.to(tl.float32)).to(means.dtype.element_ty))
    terms += head * 2 * number + at
    log = tl.log2(tl.where(of_all > 0, of_all, 1.0))
    tl.store(terms, tl.where(of_all > 0, log, float("-inf")))
    tl.store(terms + number, tl.sum(share * spread, 0))


def normals_of(
    representatives: Tensor, log_weights: Tensor, spreads: Tensor, tile_dim: int
) -> tuple[Tensor, Tensor]:
    """Of contiguous representatives [B, Hkv, members, n_key_blocks, D] and their terms the normals.

    Means in the representatives' dtype [B * Hkv, 2, number, tile_dim], as sums of two: rounded, and what
    rounding left out. fp32 [B * Hkv, 2, number]: the log, base 2, of how many keys each has, and the spread.
    ``number`` is a whole number of tiles; one is whole if its blocks are. One launch.
    """
    batch, kv_heads, members, n_key_blocks, head_dim = representatives.shape
    at_once = TILES[0][0]
    number = ceil_div(max(n_key_blocks // PEAK_BLOCKS, 1), at_once) * at_once
    means = representatives.new_empty((batch * kv_heads, 2, number, tile_dim))
    terms = spreads.new_empty((batch * kv_heads, 2, number))
    _write_normals[(number, batch * kv_heads)](
        representatives,
        log_weights,
        spreads,
        means,
        terms,
        n_key_blocks,
        members,
        HEAD_DIM=head_dim,
        TILE_DIM=tile_dim,
        BLOCKS=PEAK_BLOCKS,
        num_warps=1,
    )
    return means, terms
