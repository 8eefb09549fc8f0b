"""The representatives of key blocks on the device: ``block_representatives`` of method C."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..defaults import LANDMARK_TAKEN
from ..shared.shapes import ceil_div
from ..shared.triton import batch_stride, readable, tile_dim, visible_and_sinks
from .op import Arguments, new_results


@triton.jit
def _represent(
    key,
    key_segment,
    first_blocks,  # int32 [B|1] beside key_segment: the first block that holds a valid key
    representatives,  # [B, Hkv, 1 + landmarks, n, D]
    log_weights,  # [B, Hkv, 1 + landmarks, n], as is spreads
    spreads,
    k_batch,
    k_head,
    k_row,
    segment_batch,
    first_batch,
    heads,
    k_len,
    n,
    landmarks,
    HEAD_DIM: tl.constexpr,
    TILE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    TAKEN: tl.constexpr,
):
    block, batch_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    dim, entry = tl.arange(0, TILE_DIM), tl.arange(0, BLOCK_K)
    index = block * BLOCK_K + entry
    valid = index < k_len
    if HAS_SEGMENT:
        valid = valid & (tl.load(key_segment + batch * segment_batch + index, mask=valid, other=-1) == 0)
    keys = key + batch * k_batch + head * k_head + dim
    loaded = valid[:, None] & (dim < HEAD_DIM)[None, :]
    k = tl.load(keys[None, :] + index[:, None].to(tl.int64) * k_row, mask=loaded, other=0.0)
    products = tl.dot(k, tl.trans(k), input_precision=PRECISION)  # what is left of them
    k = k.to(tl.float32)
    left = tl.where(valid, tl.sum(k * k, 1), -1.0)  # of the squared norms; below 0: no key, or chosen
    count = tl.sum(valid.to(tl.int32), 0)
    first = (batch_head * (1 + landmarks)) * n + block
    first_block = tl.load(first_blocks + batch * first_batch) if HAS_SEGMENT else 0
    for mark in range(1, landmarks + 1):
        place = first + mark * n
        strongest = tl.argmax(left, 0)  # of equal ones the first
        if (mark == 1) & (block == first_block):
            strongest = tl.argmax(valid.to(tl.int32), 0)  # the prompt's first key
        exists = count >= mark
        landmark = tl.load(
            keys + (block * BLOCK_K + strongest).to(tl.int64) * k_row,
            mask=dim < tl.where(exists, HEAD_DIM, 0),
            other=0.0,
        )
        tl.store(representatives + place * HEAD_DIM + dim, landmark, mask=dim < HEAD_DIM)
        tl.store(log_weights + place, tl.where(exists, 0.0, float("-inf")))
        tl.store(spreads + place, 0.0)
        norm = tl.maximum(tl.sum(tl.where(entry == strongest, left, 0.0), 0), 1.1754943508222875e-38)
        column = tl.sum(tl.where((entry == strongest)[None, :], products, 0.0), 1)
        taken = column * (TAKEN / norm)
        left = tl.where(left >= 0, tl.maximum(left - taken * column, 0.0), left)
        left = tl.where(entry == strongest, -1.0, left)
        row = tl.sum(tl.where((entry == strongest)[:, None], products, 0.0), 0)  # the column, along columns
        products -= taken[:, None] * row[None, :]
    others = left >= 0
    number = tl.sum(others.to(tl.float32), 0)
    k = tl.where(others[:, None], k, 0.0)
    mean = tl.sum(k, 0) / tl.maximum(number, 1.0)
    distance = tl.where(others[:, None], k - mean[None, :], 0.0)
    spread = tl.sum(tl.sum(distance * distance, 1), 0) / (tl.maximum(number, 1.0) * HEAD_DIM)
    tl.store(
        representatives + first * HEAD_DIM + dim,
        mean.to(representatives.dtype.element_ty),
        mask=dim < HEAD_DIM,
    )
    tl.store(log_weights + first, tl.where(number > 0, tl.log(tl.maximum(number, 1.0)), float("-inf")))
    tl.store(spreads + first, spread)


def block_representatives(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The op ``block_representatives`` (see ``op``). No host synchronisation."""
    key, key_segment, block_k, landmarks = a
    batch, heads, k_len, dim = key.shape
    n = ceil_div(k_len, block_k)
    representatives, log_weights, spreads = new_results(a)
    if log_weights.numel() == 0:
        return representatives, log_weights, spreads
    key = readable(key)
    first_blocks = None
    if key_segment is not None:
        _, first_blocks = visible_and_sinks(key_segment, n, block_k, True, key.device)
    _represent[(n, batch * heads)](
        key,
        key_segment,
        first_blocks,
        representatives,
        log_weights,
        spreads,
        *key.stride()[:3],
        batch_stride(key_segment),
        batch_stride(first_blocks),
        heads,
        k_len,
        n,
        landmarks,
        HEAD_DIM=dim,
        TILE_DIM=tile_dim(dim),
        BLOCK_K=block_k,
        HAS_SEGMENT=key_segment is not None,
        PRECISION="ieee",
        TAKEN=LANDMARK_TAKEN,
        num_warps=8,
    )
    return representatives, log_weights, spreads
