"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..shared import checks
from ..shared.grid import Grid, new_index
from ..shared.record import Size

NAME = "mask_blocks"
RETURNS = "Tensor"


class Arguments(NamedTuple):
    """See :func:`mask_blocks`."""

    query: Tensor
    key: Tensor
    query_segment: Tensor | None
    key_segment: Tensor | None
    causal: bool
    q_offset: Size
    window: Size
    block_q: int
    block_k: int
    q_stride: Size = 1


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    checks.check_qkv(NAME, a.query, a.key)
    checks.check_segments(NAME, a)
    checks.check_block_size(NAME, block_q=a.block_q, block_k=a.block_k)
    checks.check_at_least(NAME, 1, q_stride=a.q_stride)


def fake(a: Arguments) -> Tensor:
    """The result's shape."""
    check(a)
    return new_index(a.query, (segment_batch(a), 1), Grid.of(a))


def segment_batch(a: Arguments) -> int:
    """Batch size of what depends on the segments: 1 unless one of them differs along the batch."""
    for segment in (a.query_segment, a.key_segment):
        if segment is not None and segment.shape[0] != 1:
            return segment.shape[0]
    return 1


def mask_blocks(
    query: Tensor,
    key: Tensor,
    *,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
    causal: bool = True,
    q_offset: int = 0,
    window: int = 0,
    block_q: int = 128,
    block_k: int = 128,
    q_stride: int = 1,
) -> Tensor:
    """The blocks that a mask leaves, as a block_mask int32 [B|1, 1, n_query_blocks, n_words].

    query and key give sizes and device only; ``window <= 0`` is none. With segments a superset may be kept,
    never less. Raises ValueError for arguments that do not fit.
    """
    where = (causal, q_offset, window, block_q, block_k, q_stride)
    a = Arguments(query, key, query_segment, key_segment, *where)
    check(a)
    return torch.ops.sampleattn.mask_blocks.default(*a)
