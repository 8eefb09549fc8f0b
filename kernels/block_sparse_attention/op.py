"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..choice import Call
from ..shared import checks
from ..shared.record import Attending, Size
from ..shared.shapes import scale_or_default

NAME = "block_sparse_attention"
RETURNS = "(Tensor out, Tensor lse)"


class Arguments(NamedTuple):
    """See :func:`block_sparse_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    block_mask: Tensor
    query_segment: Tensor | None
    key_segment: Tensor | None
    sinks: Tensor | None
    scale: float
    causal: bool
    q_offset: Size
    window: Size
    block_q: int
    block_k: int
    q_stride: Size = 1


def check(a: Arguments, op: str = NAME) -> None:
    """Raises ValueError for arguments that do not fit; ``op``: which was called with them."""
    checks.check_attention(op, a)
    checks.check_segments(op, a)
    checks.check_at_least(op, 1, q_stride=a.q_stride)
    checks.check_sinks(op, a.sinks, a.query)


def fake(a: Arguments) -> tuple[Tensor, Tensor]:
    """The results' shapes."""
    check(a)
    return new_outputs(a)


def new_outputs(a: Attending) -> tuple[Tensor, Tensor]:
    """``out`` [B, Hq, Sq, Dv], in memory [B, Sq, Hq, Dv], and ``lse`` that nobody has written yet."""
    batch, heads, q_len, _ = a.query.shape
    out = a.query.new_empty((batch, q_len, heads, a.value.shape[3])).transpose(1, 2)
    return out, a.query.new_empty((batch, heads, q_len), dtype=torch.float32)


def kernel(a: Arguments, op: str = NAME) -> Call | None:
    """What the kernel is chosen by on a GPU; None: none, since they order scores before they scale them."""
    if a.scale <= 0:
        return None
    dims = (a.query.shape[-1], a.value.shape[-1])
    return Call(op, a.query.device, a.query.dtype, dims, a.block_q, a.block_k)


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    *,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    causal: bool = True,
    q_offset: int = 0,
    window: int = 0,
    block_q: int = 128,
    block_k: int = 128,
    q_stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """Exact attention over the kept blocks of a block_mask.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv] in float32, bfloat16 or float16;
    ``scale`` None is 1/sqrt(D). ``sinks`` float32 [Hq] or [1]: a logit a head, or one for all, that takes its
    share of each row's softmax and has no value: ``out * sigmoid(lse - sink)``. Returns ``out``
    [B, Hq, Sq, Dv] in query's dtype (memory [B, Sq, Hq, Dv]) and float32 ``lse`` [B, Hq, Sq] in natural log,
    that of the kept keys without the sink; a row that keeps no key gives 0 and -inf. No backward. Raises
    ValueError for arguments that do not fit.
    """
    scale = scale_or_default(scale, query)
    where = (causal, q_offset, window, block_q, block_k, q_stride)
    a = Arguments(query, key, value, block_mask, query_segment, key_segment, sinks, scale, *where)
    check(a)
    return torch.ops.sampleattn.block_sparse_attention.default(*a)
