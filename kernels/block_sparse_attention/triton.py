"""``block_sparse_attention`` in Triton: the portable path, and a cross-check of the CUDA kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.shapes import ceil_div
from ..shared.triton import LOG2_E, batch_stride, readable, tile_dim
from .op import Arguments, new_outputs


@triton.jit
def _attend(
    query,
    key,
    value,
    block_mask,
    query_segment,
    key_segment,
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
    mask_batch,
    mask_head,
    mask_row,
    query_segment_batch,
    key_segment_batch,
    heads,
    group,
    q_len,
    k_len,
    q_offset,
    window,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    TILE_DIM: tl.constexpr,
    TILE_DIM_V: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_QUERY_SEGMENT: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
):
    # Long rows first: the last tiles have the most keys under a causal mask.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    row = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    position = row + q_offset
    dim, dim_v = tl.arange(0, TILE_DIM), tl.arange(0, TILE_DIM_V)
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
    words = block_mask + batch * mask_batch + head * mask_head + (tile * TILE_ROWS // BLOCK_Q) * mask_row

    # Key blocks that position and length allow.
    end = (k_len + BLOCK_K - 1) // BLOCK_K
    begin = 0
    if CAUSAL:
        last = tl.minimum(tile * TILE_ROWS + TILE_ROWS, q_len) - 1 + q_offset
        end = tl.minimum(end, (tl.maximum(last, -1) + BLOCK_K) // BLOCK_K)
    if HAS_WINDOW:
        begin = tl.maximum(tile * TILE_ROWS + q_offset - window + 1, 0) // BLOCK_K

    highest = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((TILE_ROWS,), tl.float32)
    acc = tl.zeros((TILE_ROWS, TILE_DIM_V), tl.float32)
    for block in range(begin, end):
        word = tl.load(words + block // 32)
        if (word >> (block % 32)) & 1:
            index = block * BLOCK_K + tl.arange(0, BLOCK_K)
            exists = index < k_len
            k = tl.load(
                keys + index[None, :].to(tl.int64) * k_row + dim[:, None],
                mask=exists[None, :] & (dim < HEAD_DIM)[:, None],
                other=0.0,
            )
            visible = exists[None, :]
            if CAUSAL:
                visible = visible & (index[None, :] <= position[:, None])
            if HAS_WINDOW:
                visible = visible & (index[None, :] > position[:, None] - window)
            if HAS_SEGMENT:
                segment = tl.load(key_segment + batch * key_segment_batch + index, mask=exists, other=-1)
                visible = visible & (segment[None, :] == own_segment[:, None]) & (segment >= 0)[None, :]
                # The weight of a key that no row sees is 0, but 0 * NaN is NaN.
                exists = exists & (segment >= 0)
            scores = tl.dot(q, k, input_precision="ieee") * scale_log2
            scores = tl.where(visible, scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            offset = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp2(scores - offset[:, None])
            correction = tl.exp2(highest - offset)
            v = tl.load(
                values + index[:, None].to(tl.int64) * v_row + dim_v[None, :],
                mask=exists[:, None] & (dim_v < HEAD_DIM_V)[None, :],
                other=0.0,
            )
            total = total * correction + tl.sum(weights, 1)
            acc = acc * correction[:, None]
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
            highest = higher

    seen = total > 0
    acc = acc / tl.where(seen, total, 1.0)[:, None]
    result = tl.where(
        highest == float("-inf"), float("-inf"), (highest + tl.log2(total)) * 0.6931471805599453
    )
    out_row = (batch * q_len + row[:, None]) * heads + head
    tl.store(
        out + out_row * HEAD_DIM_V + dim_v[None, :],
        acc.to(out.dtype.element_ty),
        mask=(row < q_len)[:, None] & (dim_v < HEAD_DIM_V)[None, :],
    )
    tl.store(lse + batch_head * q_len + row, result, mask=row < q_len)


def block_sparse_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    """The op ``block_sparse_attention`` (see ``op``). One launch, no host synchronisation."""
    batch, heads, q_len, head_dim = a.query.shape
    heads_kv, k_len, head_dim_v = a.value.shape[1:]
    out, lse = new_outputs(a)
    if lse.numel() == 0:
        return out, lse
    query, key, value = readable(a.query), readable(a.key), readable(a.value)
    block_mask, block_q, block_k = a.block_mask.contiguous(), a.block_q, a.block_k
    query_segment, key_segment = a.query_segment, a.key_segment
    if query_segment is not None and key_segment is None:
        key_segment = query_segment.new_zeros((1, k_len))

    wide = query.dtype == torch.float32 or max(head_dim, head_dim_v) > 128
    rows = min(block_q, 64 if wide else 128)
    _attend[(ceil_div(q_len, rows), batch * heads)](
        query,
        key,
        value,
        block_mask,
        query_segment,
        key_segment,
        out,
        lse,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        batch_stride(block_mask),
        0 if block_mask.shape[1] == 1 else block_mask.stride(1),
        block_mask.stride(2),
        batch_stride(query_segment),
        batch_stride(key_segment),
        heads,
        heads // heads_kv,
        q_len,
        k_len,
        a.q_offset,
        a.window,
        a.scale * LOG2_E,
        HEAD_DIM=head_dim,
        HEAD_DIM_V=head_dim_v,
        TILE_DIM=tile_dim(head_dim),
        TILE_DIM_V=tile_dim(head_dim_v),
        TILE_ROWS=rows,
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
        CAUSAL=a.causal,
        HAS_WINDOW=a.window > 0,
        HAS_QUERY_SEGMENT=query_segment is not None,
        HAS_SEGMENT=key_segment is not None,
        num_warps=8 if wide or rows == 128 else 4,
        num_stages=1 if wide else 2,
    )
    return out, lse
