"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..shared import checks
from ..shared.record import Size
from ..shared.shapes import scale_or_default

NAME = "attention_mass"
RETURNS = "Tensor"


class Arguments(NamedTuple):
    """See :func:`attention_mass`."""

    query: Tensor
    key: Tensor
    block_mask: Tensor
    key_segment: Tensor | None
    scale: float
    q_offset: Size
    chunk_n: Size
    sample_rows: int
    block_q: int
    block_k: int


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    checks.check_qkv(NAME, a.query, a.key)
    checks.check_block_size(NAME, block_q=a.block_q, block_k=a.block_k)
    checks.check_block_mask(NAME, a.block_mask, a.query, a.key.shape[2], a.block_q, a.block_k)
    checks.check_segment(NAME, "key_segment", a.key_segment, a.query.shape[0], a.key.shape[2], a.query)
    checks.check_at_least(NAME, 1, chunk_n=a.chunk_n, sample_rows=a.sample_rows)


def fake(a: Arguments) -> Tensor:
    """The result's shape."""
    check(a)
    return a.query.new_empty(a.query.shape[:2], dtype=torch.float32)


def attention_mass(
    query: Tensor,
    key: Tensor,
    block_mask: Tensor,
    *,
    key_segment: Tensor | None = None,
    scale: float | None = None,
    q_offset: int = 0,
    chunk_n: int = 2,
    sample_rows: int = 128,
    block_q: int = 128,
    block_k: int = 128,
) -> Tensor:
    """Measured CRA: the smallest share of causal attention, over the sampled rows, that lies in kept blocks.

    Arguments as in :func:`sample_scores`, block_mask as in :func:`block_sparse_attention`; returns float32
    [B, Hq]. Source: arXiv 2406.15486, section 3 (CRA). Raises ValueError for arguments that do not fit.
    """
    scale = scale_or_default(scale, query)
    where = (key_segment, scale, q_offset)
    a = Arguments(query, key, block_mask, *where, chunk_n, sample_rows, block_q, block_k)
    check(a)
    return torch.ops.sampleattn.attention_mass.default(*a)
