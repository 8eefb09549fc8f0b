"""The op on the device: a part of what left-out blocks give, added to ``block_sparse_attention``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.shapes import ceil_div
from ..shared.triton import LOG2_E, batch_stride, tile_dim
from .op import Arguments

TILE_ROWS = 64
# In base 2: a sink that is so much higher than a row's keys leaves nothing of them in any dtype.
MOST_SINK = 100.0


@triton.jit
def _add_rest(
    rest_value,  # fp32 [B * Hq, n_query_blocks, Dv]
    rest_share,  # fp32 [B * Hq, n_query_blocks]
    rest_level,  # likewise
    sinks,
    out,  # of kept blocks, of which the sinks have their share
    lse,  # without sinks
    sink_head,
    q_heads,
    q_len,
    n_query_blocks,
    part,
    log2_e,
    VALUE_HEAD_DIM: tl.constexpr,
    TILE_VALUE_DIM: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    MOST_SINK: tl.constexpr,
):
    tile = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // q_heads, batch_head % q_heads
    at = batch_head * n_query_blocks + tile * TILE_ROWS // BLOCK_Q
    share = tl.load(rest_share + at)
    if share > 0.0:  # of sampled rows that are not numbers nothing is known, and nothing is added
        row, dim = tile * TILE_ROWS + tl.arange(0, TILE_ROWS), tl.arange(0, TILE_VALUE_DIM)
        kept = tl.load(lse + batch_head * q_len + row, mask=row < q_len, other=float("-inf")) * log2_e
        sees = kept > float("-inf")
        kept = tl.where(sees, kept, 0.0)
        ratio = part * tl.exp2(tl.minimum(tl.load(rest_level + at) * log2_e - kept, 0.0))
        stays = 1.0 - ratio * share
        if HAS_SINKS:
            # `out` has the sink's share of the kept keys' mass; now it is its share of more.
            sink = tl.exp2(tl.minimum(tl.load(sinks + head * sink_head) * log2_e - kept, MOST_SINK))
            more = 1.0 + stays * sink
            stays = stays * (1.0 + sink) / more
            ratio = ratio / more
        value = tl.load(rest_value + at * VALUE_HEAD_DIM + dim, mask=dim < VALUE_HEAD_DIM, other=0.0)
        places = out + ((batch * q_len + row[:, None]) * q_heads + head) * VALUE_HEAD_DIM + dim[None, :]
        there = sees[:, None] & (dim < VALUE_HEAD_DIM)[None, :]
        before = tl.load(places, mask=there, other=0.0).to(tl.float32)
        both = before * stays[:, None] + ratio[:, None] * value[None, :]
        tl.store(places, both.to(out.dtype.element_ty), mask=there)


def block_rest_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    """The op ``block_rest_attention`` (see ``op``): ``block_sparse_attention``, and the rest added to it."""
    out, lse = torch.ops.sampleattn.block_sparse_attention.default(*a.of_kept_blocks)
    add_rest_(a, out, lse)
    return out, lse


def add_rest_(a: Arguments, out: Tensor, lse: Tensor) -> None:
    """See ``eager.add_rest_``. ``out`` must be [B, Sq, Hq, Dv] in memory. One launch."""
    batch, q_heads, q_len = lse.shape
    value_head_dim, rows = a.value.shape[3], min(a.block_q, TILE_ROWS)
    if lse.numel() == 0:
        return
    _add_rest[(ceil_div(q_len, rows), batch * q_heads)](
        a.rest_value.contiguous(),
        a.rest_share.contiguous(),
        a.rest_level.contiguous(),
        a.sinks,
        out,
        lse,
        batch_stride(a.sinks),
        q_heads,
        q_len,
        a.rest_share.shape[2],
        a.part,
        LOG2_E,
        VALUE_HEAD_DIM=value_head_dim,
        TILE_VALUE_DIM=tile_dim(value_head_dim),
        TILE_ROWS=rows,
        BLOCK_Q=a.block_q,
        HAS_SINKS=a.sinks is not None,
        MOST_SINK=MOST_SINK,
        num_warps=4 if value_head_dim <= 128 else 8,
    )
