"""The op on the device: what dropped blocks add to ``block_sparse_attention``, by their means."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.shapes import ceil_div
from ..shared.triton import LOG2_E, batch_stride, floor_div, readable, tile_dim
from .op import Arguments

TILE_BLOCKS = 32  # key blocks whose means a program holds at a time
SCANNED_BLOCKS = 1024  # whose bits it looks at to find out whether any was dropped


@triton.jit
def _block_means(
    key,
    value,
    key_segment,
    mean_keys,  # [B, Hkv, n_key_blocks, D], of key's dtype like the next
    mean_values,  # [B, Hkv, n_key_blocks, Dv]
    log_counts,  # fp32 [B, Hkv, n_key_blocks], base 2
    spreads,  # fp32 [B, Hkv, n_key_blocks]
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    segment_batch,
    q_heads,
    kv_len,
    n_key_blocks,
    HEAD_DIM: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    TILE_VALUE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
):
    block = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // q_heads, batch_head % q_heads
    index = block * BLOCK_K + tl.arange(0, BLOCK_K)
    dim, value_dim = tl.arange(0, TILE_DIM), tl.arange(0, TILE_VALUE_DIM)
    valid = index < kv_len
    if HAS_SEGMENT:
        segment = tl.load(key_segment + batch * segment_batch + index, mask=valid, other=-1)
        valid = valid & (segment == 0)
    count = tl.sum(valid.to(tl.float32), 0)
    some = tl.maximum(count, 1.0)
    at = batch_head * n_key_blocks + block
    k = tl.load(
        key + batch * k_batch + head * k_head + index[:, None].to(tl.int64) * k_row + dim[None, :],
        mask=valid[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    ).to(tl.float32)
    mean = tl.sum(k, 0) / some
    distance = tl.where(valid[:, None], k - mean[None, :], 0.0)
    spread = tl.sum(tl.sum(distance * distance, 1), 0) / (some * HEAD_DIM)
    tl.store(mean_keys + at * HEAD_DIM + dim, mean.to(mean_keys.dtype.element_ty), mask=dim < HEAD_DIM)
    tl.store(log_counts + at, tl.where(count > 0, tl.log2(some), float("-inf")))
    tl.store(spreads + at, spread)
    v = tl.load(
        value + batch * v_batch + head * v_head + index[:, None].to(tl.int64) * v_row + value_dim[None, :],
        mask=valid[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
        other=0.0,
    ).to(tl.float32)
    mean = tl.sum(v, 0) / some
    tl.store(
        mean_values + at * VALUE_HEAD_DIM + value_dim,
        mean.to(mean_values.dtype.element_ty),
        mask=value_dim < VALUE_HEAD_DIM,
    )


@triton.jit
def _dropped(words, block, end):
    """Which key blocks before ``end`` have no bit in a query block's words."""
    word = tl.load(words + block // 32, mask=block < end, other=-1)
    return ((word >> (block % 32)) & 1) == 0


@triton.jit
def _add_means(
    query,
    mean_keys,
    mean_values,
    log_counts,
    spreads,
    block_mask,
    sinks,
    out,  # of kept blocks, of which the sinks have their share
    lse,  # without sinks
    q_batch,
    q_head,
    q_row,
    mask_batch,
    mask_head,
    mask_row,
    sink_head,
    q_heads,
    group,
    q_len,
    kv_len,
    q_offset,
    n_key_blocks,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    TILE_VALUE_DIM: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    SCANNED_BLOCKS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    # Long rows first, as in attention.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // q_heads, batch_head % q_heads
    query_block = tile * TILE_ROWS // BLOCK_Q
    words = block_mask + batch * mask_batch + head * mask_head + query_block.to(tl.int64) * mask_row
    # Key blocks all of whose keys the query block's first row sees.
    first = query_block * BLOCK_Q + q_offset
    end = tl.maximum(floor_div(first + 1, BLOCK_K), 0)
    end = tl.where(first >= kv_len - 1, n_key_blocks, tl.minimum(end, n_key_blocks))
    found = 0
    for start in range(0, end, SCANNED_BLOCKS):
        found += tl.sum(_dropped(words, start + tl.arange(0, SCANNED_BLOCKS), end).to(tl.int32), 0)
    if found > 0:
        row = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
        exists = row < q_len
        dim, value_dim = tl.arange(0, TILE_DIM), tl.arange(0, TILE_VALUE_DIM)
        q = tl.load(
            query + batch * q_batch + head * q_head + row[:, None].to(tl.int64) * q_row + dim[None, :],
            mask=exists[:, None] & (dim < HEAD_DIM)[None, :],
            other=0.0,
        )
        norm = tl.sum(q.to(tl.float32) * q.to(tl.float32), 1)
        # In base 2, half the squared norm of the scaled query.
        half_norm = norm * (scale_log2 * scale_log2 * 0.34657359027997264)
        out_row = (batch * q_len + row[:, None]) * q_heads + head
        outs = out + out_row * VALUE_HEAD_DIM + value_dim[None, :]
        there = exists[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :]
        acc = tl.load(outs, mask=there, other=0.0).to(tl.float32)
        lses = lse + batch_head * q_len + row
        kept = tl.load(lses, mask=exists, other=float("-inf")) * 1.4426950408889634
        highest = kept
        if HAS_SINKS:
            sink = tl.load(sinks + head * sink_head) * 1.4426950408889634
            highest = tl.maximum(highest, sink)
        offset = tl.where(highest == float("-inf"), 0.0, highest)
        before = tl.exp2(kept - offset)  # what ``out`` is a mean over
        if HAS_SINKS:
            before += tl.exp2(sink - offset)
        acc = acc * before[:, None]
        total = tl.zeros((TILE_ROWS,), tl.float32)  # of the means
        means = (batch * (q_heads // group) + head // group) * n_key_blocks
        keys, values = mean_keys + means * HEAD_DIM, mean_values + means * VALUE_HEAD_DIM
        counts, variances = log_counts + means, spreads + means
        for start in range(0, end, TILE_BLOCKS):
            block = start + tl.arange(0, TILE_BLOCKS)
            # Nothing of kept blocks is loaded: their means may be NaN that no row here may see. Like blocks
            # without valid keys they have no mass.
            dropped = _dropped(words, block, end)
            log_count = tl.load(counts + block, mask=dropped, other=float("-inf"))
            spread = tl.load(variances + block, mask=dropped, other=0.0)
            k = tl.load(
                keys + block[None, :] * HEAD_DIM + dim[:, None],
                mask=dropped[None, :] & (dim < HEAD_DIM)[:, None],
                other=0.0,
            )
            gain = tl.minimum(half_norm[:, None] * spread[None, :], log_count[None, :])
            scores = tl.dot(q, k, input_precision="ieee") * scale_log2 + (gain + log_count[None, :])
            higher = tl.maximum(highest, tl.max(scores, 1))
            offset = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp2(scores - offset[:, None])
            correction = tl.exp2(highest - offset)
            v = tl.load(
                values + block[:, None] * VALUE_HEAD_DIM + value_dim[None, :],
                mask=dropped[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
                other=0.0,
            )
            total = total * correction + tl.sum(weights, 1)
            acc = acc * correction[:, None]
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
            highest = higher
        offset = tl.where(highest == float("-inf"), 0.0, highest)
        total += tl.exp2(kept - offset)
        tl.store(lses, (highest + tl.log2(total)) * 0.6931471805599453, mask=exists)
        if HAS_SINKS:
            total += tl.exp2(sink - offset)
        acc = acc * (1.0 / tl.where(total == 0, 1.0, total))[:, None]
        tl.store(outs, acc.to(out.dtype.element_ty), mask=there)


def block_mean_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    """The op ``block_mean_attention`` (see ``op``): ``block_sparse_attention``, and the means added to it."""
    out, lse = torch.ops.sampleattn.block_sparse_attention.default(*a.of_kept_blocks)
    add_block_means_(a, out, lse)
    return out, lse


def add_block_means_(a: Arguments, out: Tensor, lse: Tensor) -> None:
    """See ``eager.add_block_means_``. ``out`` must be [B, Sq, Hq, Dv] in memory. Two launches."""
    batch, q_heads, q_len, head_dim = a.query.shape
    kv_heads, kv_len, value_head_dim = a.value.shape[1:]
    block_q, block_k, key_segment = a.block_q, a.block_k, a.key_segment
    n_key_blocks = ceil_div(kv_len, block_k)
    if lse.numel() == 0 or n_key_blocks == 0:
        return
    query, key, value = readable(a.query), readable(a.key), readable(a.value)
    block_mask = a.block_mask.contiguous()
    shape = (batch, kv_heads, n_key_blocks)
    mean_keys, mean_values = (key.new_empty((*shape, dim)) for dim in (head_dim, value_head_dim))
    log_counts, spreads = (key.new_empty(shape, dtype=torch.float32) for _ in range(2))
    means = (mean_keys, mean_values, log_counts, spreads)
    dims = {
        "HEAD_DIM": head_dim,
        "VALUE_HEAD_DIM": value_head_dim,
        "TILE_DIM": tile_dim(head_dim),
        "TILE_VALUE_DIM": tile_dim(value_head_dim),
    }
    wide = query.dtype == torch.float32 or max(head_dim, value_head_dim) > 128
    _block_means[(n_key_blocks, batch * kv_heads)](
        key,
        value,
        key_segment,
        *means,
        *key.stride()[:3],
        *value.stride()[:3],
        batch_stride(key_segment),
        kv_heads,
        kv_len,
        n_key_blocks,
        **dims,
        BLOCK_K=block_k,
        HAS_SEGMENT=key_segment is not None,
        num_warps=8 if wide or block_k == 128 else 4,
    )
    rows = min(block_q, 64 if wide else 128)
    _add_means[(ceil_div(q_len, rows), batch * q_heads)](
        query,
        *means,
        block_mask,
        a.sinks,
        out,
        lse,
        *query.stride()[:3],
        batch_stride(block_mask),
        0 if block_mask.shape[1] == 1 else block_mask.stride(1),
        block_mask.stride(2),
        batch_stride(a.sinks),
        q_heads,
        q_heads // kv_heads,
        q_len,
        kv_len,
        a.q_offset,
        n_key_blocks,
        a.scale * LOG2_E,
        **dims,
        TILE_ROWS=rows,
        TILE_BLOCKS=TILE_BLOCKS,
        SCANNED_BLOCKS=SCANNED_BLOCKS,
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
        HAS_SINKS=a.sinks is not None,
        num_warps=8 if wide or rows == 128 else 4,
        num_stages=1,
        # Two thread blocks a multiprocessor: little is computed here, loads must overlap.
        maxnreg=128 if rows == 128 else None,
    )
