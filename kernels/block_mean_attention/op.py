"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..block_sparse_attention import op as kept
from ..choice import Call
from ..shared import checks
from ..shared.record import Size
from ..shared.shapes import scale_or_default

NAME = "block_mean_attention"
RETURNS = "(Tensor out, Tensor lse)"


class Arguments(NamedTuple):
    """See :func:`block_mean_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    block_mask: Tensor
    key_segment: Tensor | None
    sinks: Tensor | None
    scale: float
    q_offset: Size
    block_q: int
    block_k: int

    @property
    def of_kept_blocks(self) -> kept.Arguments:
        """The attention over kept blocks alone, ``block_sparse_attention``."""
        where = (self.scale, True, self.q_offset, 0, self.block_q, self.block_k)
        tensors = (self.query, self.key, self.value, self.block_mask, None, self.key_segment, self.sinks)
        return kept.Arguments(*tensors, *where)


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    checks.check_attention(NAME, a)
    checks.check_segment(NAME, "key_segment", a.key_segment, a.query.shape[0], a.key.shape[2], a.query)
    checks.check_sinks(NAME, a.sinks, a.query)


def fake(a: Arguments) -> tuple[Tensor, Tensor]:
    """The results' shapes."""
    check(a)
    return kept.new_outputs(a)


def kernel(a: Arguments) -> Call | None:
    """What the kernel is chosen by on a GPU, as that of the attention over kept blocks is."""
    return kept.kernel(a.of_kept_blocks, NAME)


def block_mean_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    *,
    key_segment: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    q_offset: int = 0,
    block_q: int = 128,
    block_k: int = 128,
) -> tuple[Tensor, Tensor]:
    """Causal attention over the kept blocks, exactly, and over the dropped ones by their mean key and value.

    Arguments and results as in :func:`block_sparse_attention`, ``lse`` that of both parts. Dropped are blocks
    whose bit is not set and whose keys all rows of the query block may see; a block that causality cuts is
    left out if its bit is not set. Source: docs/accuracy.md. No backward. Raises ValueError for arguments
    that do not fit.
    """
    scale = scale_or_default(scale, query)
    where = (key_segment, sinks, scale, q_offset, block_q, block_k)
    a = Arguments(query, key, value, block_mask, *where)
    check(a)
    return torch.ops.sampleattn.block_mean_attention.default(*a)
