"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..choice import Call
from ..defaults import ADAPTIVE_TAU
from ..shared import checks
from ..shared.forced import Forced
from ..shared.grid import Grid, new_index
from ..shared.record import Size
from ..shared.shapes import scale_or_default

NAME = "select_adaptive"
RETURNS = "Tensor"


class Arguments(NamedTuple):
    """See :func:`select_adaptive`."""

    query: Tensor
    key: Tensor
    representatives: Tensor
    log_weights: Tensor
    spreads: Tensor
    key_segment: Tensor | None
    scale: float
    q_offset: Size
    block_q: int
    block_k: int
    tau: float
    keep_sink: bool
    window_slashes: int
    last_rows: int
    q_stride: Size = 1
    sinks: Tensor | None = None

    @property
    def forced(self) -> Forced:
        return Forced(self.keep_sink, self.window_slashes, self.last_rows)


def check_selection(op: str, a: Any, **least: float) -> None:
    """Raises ValueError for what no selection by landmarks takes.

    ``least``: the number from which on a block is kept.
    """
    checks.check_qkv(op, a.query, a.key)
    checks.check_block_size(op, block_q=a.block_q, block_k=a.block_k)
    checks.check_representatives(op, a.representatives, a.log_weights, a.spreads, a.key, a.block_k)
    checks.check_segment(op, "key_segment", a.key_segment, a.query.shape[0], a.key.shape[2], a.query)
    checks.check_sinks(op, a.sinks, a.query)
    checks.check_at_least(op, 0, **least, last_rows=a.last_rows)
    checks.check_at_least(op, 1, window_slashes=a.window_slashes, q_stride=a.q_stride)


def call_of(op: str, a: Any) -> Call | None:
    """What the kernel of a selection by landmarks is chosen by on a GPU.

    None: none, since they mask and compare scores before they scale them.
    """
    if a.scale <= 0:
        return None
    dims, members = (a.query.shape[-1], a.query.shape[-1]), a.representatives.shape[2]
    return Call(op, a.query.device, a.query.dtype, dims, a.block_q, a.block_k, members)


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    check_selection(NAME, a, tau=a.tau)


def fake(a: Arguments) -> Tensor:
    """The result's shape."""
    check(a)
    return new_index(a.query, a.query.shape[:2], Grid.of(a))


def kernel(a: Arguments) -> Call | None:
    """What the kernel is chosen by on a GPU, or None."""
    return call_of(NAME, a)


def select_adaptive(
    query: Tensor,
    key: Tensor,
    representatives: tuple[Tensor, Tensor, Tensor],
    *,
    key_segment: Tensor | None = None,
    scale: float | None = None,
    q_offset: int = 0,
    block_q: int = 128,
    block_k: int = 128,
    tau: float = ADAPTIVE_TAU,
    keep_sink: bool = True,
    window_slashes: int = 2,
    last_rows: int = 0,
    q_stride: int = 1,
    sinks: Tensor | None = None,
) -> Tensor:
    """Per query block, the key blocks that its rows are estimated to look for, as a block_mask.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D]; ``representatives``: :func:`block_representatives` of key.
    A block is kept if the shares of attention that the rows give its keys reach ``tau`` in their 2-norm: one
    row that gives one key tau, or many less. What all keys of a block share alike is left to their mean, see
    :func:`block_mean_attention`. The sink block and ``window_slashes`` >= 1 block
    diagonals are always kept. Blocks before a query block's own are scored by their representatives, its own
    exactly: of landmarks 1, 4, 7, .., of 2, 5, 8, .. and of 3, 6, 9, .. a row counts the one that it looks
    for most. The Hopper kernel rounds numbers to bytes for that. Query blocks that hold a prompt's
    last ``last_rows`` rows keep every block; ``tau`` 0 keeps every block that causality allows. ``sinks``
    float32 [Hq] or [1]: logits that take their share of each row's attention, as in
    :func:`block_sparse_attention`; what is left to keys is less then, and so is what is kept.
    Returns int32 [B, Hq, n_query_blocks, n_words]. Source: docs/accuracy.md. Raises ValueError for arguments
    that do not fit.
    """
    scale = scale_or_default(scale, query)
    where = (*representatives, key_segment, scale, q_offset, block_q, block_k)
    a = Arguments(query, key, *where, tau, keep_sink, window_slashes, last_rows, q_stride, sinks)
    check(a)
    return torch.ops.sampleattn.select_adaptive.default(*a)
