"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..choice import Call
from ..defaults import BUDGET_ROWS
from ..select_budget import op as select_budget
from ..shared import checks
from ..shared.grid import Grid, new_index
from ..shared.record import Size
from ..shared.shapes import scale_or_default

NAME = "select_budget_rest"
RETURNS = "(Tensor block_mask, Tensor rest_value, Tensor rest_share, Tensor rest_level)"


class Arguments(NamedTuple):
    """See :func:`select_budget_rest`."""

    query: Tensor
    key: Tensor
    value: Tensor
    block_mask: Tensor
    key_segment: Tensor | None
    scale: float
    q_offset: Size
    block_q: int
    block_k: int
    budget: float
    tau: float
    rows: int
    keep_sink: bool
    window_slashes: int
    q_stride: Size = 1
    sinks: Tensor | None = None

    @property
    def of_budget(self) -> select_budget.Arguments:
        """Those of ``select_budget``."""
        return select_budget.Arguments(self.query, self.key, *self[4:])


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    checks.check_attention(NAME, a)
    select_budget.check(a.of_budget, NAME)


def fake(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results' shapes."""
    check(a)
    return new_index(a.query, a.query.shape[:2], Grid.of(a)), *new_rest(a)


def new_rest(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """``rest_value``, ``rest_share`` and ``rest_level`` that nobody has written yet."""
    shape = (*a.query.shape[:2], Grid.of(a).n_query_blocks)
    value = a.query.new_empty((*shape, a.value.shape[3]), dtype=torch.float32)
    share, level = (a.query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return value, share, level


def kernel(a: Arguments) -> Call | None:
    """What the kernel is chosen by on a GPU; None: none, since the CUDA one scales a row's largest score."""
    if a.scale <= 0:
        return None
    dims = (a.query.shape[-1], a.value.shape[-1])
    return Call(NAME, a.query.device, a.query.dtype, dims, a.block_q, a.block_k)


def select_budget_rest(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    *,
    key_segment: Tensor | None = None,
    scale: float | None = None,
    q_offset: int = 0,
    block_q: int = 128,
    block_k: int = 128,
    budget: float,
    tau: float,
    rows: int = BUDGET_ROWS,
    keep_sink: bool = True,
    window_slashes: int = 2,
    q_stride: int = 1,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The blocks of ``select_budget`` or of ``block_mask``, and what sampled rows get from all others.

    Arguments as in :func:`select_budget`; value [B, Hkv, Sk, Dv], and block_mask int32
    [B|1, Hq|1, n_query_blocks, n_words] of blocks that are kept, too. Returns the block_mask of both, int32
    [B, Hq, n_query_blocks, n_words], and of each query block, float32: ``rest_value``
    [B, Hq, n_query_blocks, Dv], the mean values of the blocks that are left out, weighed by the shares of
    attention that the sampled rows give them on average; ``rest_share`` [B, Hq, n_query_blocks], the sum of
    these shares; ``rest_level``, likewise, the natural logarithm of what the kept blocks sum up to in a
    sampled row: the mean over these rows of their log-sum-exp over all keys, and log(1 - rest_share). A mean
    value that is not finite counts as 0. Nothing left out, and no row that sees a key: 0, 0 and -inf or
    more. ``sinks`` have a say in what is kept alone: all three are of the attention among keys, which is what
    :func:`block_rest_attention` gives the sink its share of. Source: docs/pretrained.md. Raises ValueError
    for arguments that do not fit.
    """
    scale = scale_or_default(scale, query)
    where = (key_segment, scale, q_offset, block_q, block_k)
    kept = (keep_sink, window_slashes, q_stride, sinks)
    a = Arguments(query, key, value, block_mask, *where, budget, tau, rows, *kept)
    check(a)
    return torch.ops.sampleattn.select_budget_rest.default(*a)
