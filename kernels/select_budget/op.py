"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..choice import Call
from ..defaults import BUDGET_ROWS
from ..shared import checks
from ..shared.forced import Forced
from ..shared.grid import Grid, new_index
from ..shared.record import Size
from ..shared.shapes import Rows, scale_or_default

NAME = "select_budget"
RETURNS = "Tensor"


class Arguments(NamedTuple):
    """See :func:`select_budget`."""

    query: Tensor
    key: Tensor
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
    def forced(self) -> Forced:
        return Forced(self.keep_sink, self.window_slashes)


# Up to so many keys the rows asked for are sampled; from there on half as many each time that keys double.
FULL_KEYS = 16384
LEAST_ROWS = 4


def check(a: Arguments, op: str = NAME) -> None:
    """Raises ValueError for arguments that do not fit; ``op``: which was called with them."""
    checks.check_qkv(op, a.query, a.key)
    checks.check_block_size(op, block_q=a.block_q, block_k=a.block_k)
    checks.check_segment(op, "key_segment", a.key_segment, a.query.shape[0], a.key.shape[2], a.query)
    checks.check_sinks(op, a.sinks, a.query)
    checks.check_at_least(op, 0, budget=a.budget, tau=a.tau)
    checks.check_at_least(op, 1, window_slashes=a.window_slashes, q_stride=a.q_stride)
    checks.check_power_of_two(op, rows=a.rows)


def fake(a: Arguments) -> Tensor:
    """The result's shape."""
    check(a)
    return new_index(a.query, a.query.shape[:2], Grid.of(a))


def kernel(a: Arguments) -> Call | None:
    """What the kernel is chosen by on a GPU; None: none, since the CUDA one scales a row's largest score."""
    if a.scale <= 0:
        return None
    return Call(NAME, a.query.device, a.query.dtype, (a.query.shape[-1],) * 2, a.block_q, a.block_k)


def select_budget(
    query: Tensor,
    key: Tensor,
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
) -> Tensor:
    """Per query block, the key blocks that sampled rows give too much attention to be left out.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D] in float32, bfloat16 or float16. The attention of ``rows`` rows
    of a query block is exact. Their shares, averaged, are left out from the smallest on, as long as a share
    times (itself and twice what was left out before it) stays below ``budget`` squared: the square of what is
    left out grows by that. A block is kept, too, if the shares of its keys reach ``tau`` in their 2-norm over
    rows, ``block_q`` of them for those that were sampled. Prompts of more than 16384 keys sample half as many
    rows each time they double, 4 at least. The sink block and ``window_slashes`` >= 1 block diagonals are
    always kept; ``budget`` 0 or ``tau`` 0 keeps every block that causality allows. ``sinks`` float32 [Hq] or
    [1]: logits that take their share of each row's attention, as in :func:`block_sparse_attention`, before
    those of keys are looked at. Returns int32 [B, Hq, n_query_blocks, n_words]. Source: docs/pretrained.md.
    Raises ValueError for arguments that do not fit.
    """
    scale = scale_or_default(scale, query)
    where = (key_segment, scale, q_offset, block_q, block_k)
    kept = (keep_sink, window_slashes, q_stride, sinks)
    a = Arguments(query, key, *where, budget, tau, rows, *kept)
    check(a)
    return torch.ops.sampleattn.select_budget.default(*a)


def rows_of_a_block(rows: int, kv_len: int, block_q: int) -> int:
    """How many rows of a query block are sampled: at most ``rows``, fewer for long prompts."""
    least, keys = min(LEAST_ROWS, rows), FULL_KEYS
    while rows > least and kv_len > keys:
        rows, keys = rows // 2, keys * 2
    return min(rows, block_q)


def first_row(number: Rows, step: int) -> Rows:
    """Where in a query block the rows begin that are sampled every ``step`` rows: it moves from block to
    block.

    ``number``: the block's in its prompt, the position of its first row by ``block_q``.
    """
    return (5 * number + 3) % step
