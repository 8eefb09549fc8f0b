"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..block_sparse_attention import op as kept
from ..choice import Call
from ..shared import checks
from ..shared.grid import Grid
from ..shared.record import Size
from ..shared.shapes import scale_or_default

NAME = "block_rest_attention"
RETURNS = "(Tensor out, Tensor lse)"


class Arguments(NamedTuple):
    """See :func:`block_rest_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    block_mask: Tensor
    rest_value: Tensor
    rest_share: Tensor
    rest_level: Tensor
    key_segment: Tensor | None
    sinks: Tensor | None
    scale: float
    part: float
    q_offset: Size
    block_q: int
    block_k: int
    q_stride: Size = 1

    @property
    def of_kept_blocks(self) -> kept.Arguments:
        """The attention over kept blocks alone, ``block_sparse_attention``."""
        tensors = (self.query, self.key, self.value, self.block_mask, None, self.key_segment, self.sinks)
        return kept.Arguments(
            *tensors, self.scale, True, self.q_offset, 0, self.block_q, self.block_k, self.q_stride
        )


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    kept.check(a.of_kept_blocks, NAME)
    shape = (*a.query.shape[:2], Grid.of(a).n_query_blocks)
    checks.check_float32(NAME, "rest_value", a.rest_value, (*shape, a.value.shape[3]), a.query)
    checks.check_float32(NAME, "rest_share", a.rest_share, shape, a.query)
    checks.check_float32(NAME, "rest_level", a.rest_level, shape, a.query)
    if not 0 <= a.part <= 1:
        raise ValueError(f"{NAME}: 'part' must be in [0, 1], got {a.part}")


def fake(a: Arguments) -> tuple[Tensor, Tensor]:
    """The results' shapes."""
    check(a)
    return kept.new_outputs(a)


def kernel(a: Arguments) -> Call | None:
    """What the kernel is chosen by on a GPU, as that of the attention over kept blocks is."""
    return kept.kernel(a.of_kept_blocks, NAME)


def block_rest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    rest_value: Tensor,
    rest_share: Tensor,
    rest_level: Tensor,
    *,
    key_segment: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    part: float = 0.5,
    q_offset: int = 0,
    block_q: int = 128,
    block_k: int = 128,
    q_stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """Causal attention over the kept blocks, exactly, and a part of what the others give on average.

    Arguments as in :func:`block_sparse_attention` and the results of :func:`select_budget_rest`. With ``l``
    the log-sum-exp of a row's kept keys and ``r = part * min(1, exp(rest_level - l))``, its output ``o`` over
    them becomes ``(1 - r * rest_share) o + r * rest_value``: what is left out never counts more than it does
    in sampled rows on average, and less in a row that the kept keys mean more to. A sink takes its share of
    both. A share of 0, or that is not a number, adds nothing. ``part`` in [0, 1]. Returns ``out`` and ``lse``
    as :func:`block_sparse_attention`, ``lse`` that of the kept keys. Source: docs/pretrained.md. No backward.
    Raises ValueError for arguments that do not fit.
    """
    scale = scale_or_default(scale, query)
    where = (key_segment, sinks, scale, part, q_offset, block_q, block_k, q_stride)
    a = Arguments(query, key, value, block_mask, rest_value, rest_share, rest_level, *where)
    check(a)
    return torch.ops.sampleattn.block_rest_attention.default(*a)
