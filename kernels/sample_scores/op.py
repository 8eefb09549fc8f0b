"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..choice import Call
from ..shared import checks
from ..shared.record import Size
from ..shared.shapes import ceil_div, scale_or_default

NAME = "sample_scores"
RETURNS = "(Tensor column_scores, Tensor slash_scores)"


class Arguments(NamedTuple):
    """See :func:`sample_scores`."""

    query: Tensor
    key: Tensor
    key_segment: Tensor | None
    scale: float
    q_offset: Size
    chunk_n: Size
    sample_rows: int
    block_k: int


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    checks.check_qkv(NAME, a.query, a.key)
    checks.check_segment(NAME, "key_segment", a.key_segment, a.query.shape[0], a.key.shape[2], a.query)
    checks.check_at_least(NAME, 1, chunk_n=a.chunk_n, sample_rows=a.sample_rows)
    checks.check_block_size(NAME, block_k=a.block_k)


def fake(a: Arguments) -> tuple[Tensor, Tensor]:
    """The results' shapes."""
    check(a)
    shape = (a.query.shape[0], a.query.shape[1], ceil_div(a.key.shape[2], a.block_k))
    return a.query.new_empty(shape, dtype=torch.float32), a.query.new_empty(shape, dtype=torch.float32)


def kernel(a: Arguments) -> Call:
    """What the kernel is chosen by on a GPU."""
    return Call(NAME, a.query.device, a.query.dtype)


def sample_scores(
    query: Tensor,
    key: Tensor,
    *,
    key_segment: Tensor | None = None,
    scale: float | None = None,
    q_offset: int = 0,
    chunk_n: int = 2,
    sample_rows: int = 128,
    block_k: int = 128,
) -> tuple[Tensor, Tensor]:
    """Attention of sampled rows, summed per key block and per block diagonal (arXiv 2406.15486v3, section 3).

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D] in float32, bfloat16 or float16; ``scale`` None is 1/sqrt(D).
    Returns float32 ``column_scores`` and ``slash_scores`` [B, Hq, ceil(Sk / block_k)]: means over the sampled
    rows that can see the column or slash. Raises ValueError for arguments that do not fit.
    """
    scale = scale_or_default(scale, query)
    a = Arguments(query, key, key_segment, scale, q_offset, chunk_n, sample_rows, block_k)
    check(a)
    return torch.ops.sampleattn.sample_scores.default(*a)
