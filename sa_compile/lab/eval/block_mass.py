"""Exact attention mass of every block in Triton, from the log-sum-exp of the rows: what the oracle needs.

The plain reading (``rules.base.all_block_mass``) writes all scores to memory, several times; this kernel
none. It serves the harness only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sa_compile.kernels.shared import checks
from sa_compile.kernels.shared.shapes import ceil_div
from sa_compile.kernels.shared.triton import tile_dim

_LOG2_E = 1.4426950408889634


@triton.jit
def _sum_blocks(
    query,
    key,
    lse,
    mass,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    heads,
    group,
    q_len,
    kv_len,
    q_offset,
    n_key_blocks,
    scale_log2,
    LOG2_E: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Long rows first: the last query blocks have the most keys.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    row = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    position = row + q_offset
    dim = tl.arange(0, TILE_DIM)
    q = tl.load(
        query + batch * q_batch + head * q_head + row[:, None].to(tl.int64) * q_row + dim[None, :],
        mask=(row < q_len)[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    total = tl.load(lse + batch_head * q_len + row, mask=row < q_len, other=float("inf")) * LOG2_E
    # A row without keys has no mass; -inf - -inf would be NaN.
    total = tl.where(total == float("-inf"), float("inf"), total)
    keys = key + batch * k_batch + (head // group) * k_head
    out = mass + (batch_head * tl.num_programs(0) + tile) * n_key_blocks
    last = tl.minimum(tile * BLOCK_Q + BLOCK_Q, q_len) - 1 + q_offset
    end = tl.minimum(n_key_blocks, (tl.maximum(last, -1) + BLOCK_K) // BLOCK_K)
    for block in range(0, end):
        index = block * BLOCK_K + tl.arange(0, BLOCK_K)
        k = tl.load(
            keys + index[None, :].to(tl.int64) * k_row + dim[:, None],
            mask=(index < kv_len)[None, :] & (dim < HEAD_DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale_log2
        visible = (index < kv_len)[None, :] & (index[None, :] <= position[:, None])
        weights = tl.where(visible, tl.exp2(scores - total[:, None]), 0.0)
        tl.store(out + block, tl.sum(tl.sum(weights, 1), 0))


def block_mass(
    query: Tensor, key: Tensor, lse: Tensor, *, scale: float, q_offset: int, block_q: int, block_k: int
) -> Tensor:
    """Causal attention summed over the entries of every block, fp32 [B, Hq, n_query_blocks, n_key_blocks].

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D], lse fp32 [B, Hq, Sq] as ``block_sparse_attention`` returns it
    with every block kept. ValueError for block sizes that the ops do not take.
    """
    checks.check_block_size("block_mass", block_q=block_q, block_k=block_k)
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    n_key_blocks = ceil_div(kv_len, block_k)
    shape = (batch, heads, ceil_div(q_len, block_q), n_key_blocks)
    mass = torch.zeros(shape, dtype=torch.float32, device=query.device)
    if not mass.numel():
        return mass
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    _sum_blocks[(shape[2], batch * heads)](
        query,
        key,
        lse.contiguous(),
        mass,
        *query.stride()[:3],
        *key.stride()[:3],
        heads,
        heads // kv_heads,
        q_len,
        kv_len,
        q_offset,
        n_key_blocks,
        scale * _LOG2_E,
        LOG2_E=_LOG2_E,
        HEAD_DIM=head_dim,
        TILE_DIM=tile_dim(head_dim),
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
        num_warps=8 if block_q == 128 else 4,
        num_stages=3 if head_dim <= 128 else 2,  # tiles of keys must fit into shared memory
    )
    return mass
