"""The op's signature, what it asks of its arguments, its fake, and how it is called."""

from __future__ import annotations

import torch
from torch import Tensor

from ..defaults import BUDGET_ROWS
from ..shared import checks
from ..shared.shapes import ceil_div, n_words

NAME = "select_budget"
SCHEMA = (
    "(Tensor query, Tensor key, Tensor? key_segment, float scale, SymInt q_offset, int block_q, int block_k, "
    "float budget, float tau, int rows, bool keep_sink, int window_slashes) -> Tensor"
)

# Up to so many keys the rows asked for are sampled; from there on half as many each time that keys double.
FULL_KEYS = 16384
LEAST_ROWS = 4


def check(
    query: Tensor,
    key: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    block_q: int,
    block_k: int,
    budget: float,
    tau: float,
    rows: int,
    keep_sink: bool,
    window_slashes: int,
) -> None:
    """Raises ValueError for arguments that do not fit."""
    checks.check_qkv(NAME, query, key)
    checks.check_block_size(NAME, block_q=block_q, block_k=block_k)
    checks.check_segment(NAME, "key_segment", key_segment, query.shape[0], key.shape[2], query)
    checks.check_at_least(NAME, 0, budget=budget, tau=tau)
    checks.check_at_least(NAME, 1, window_slashes=window_slashes)
    checks.check_power_of_two(NAME, rows=rows)


def fake(query: Tensor, key: Tensor, *rest: int) -> Tensor:
    """The result's shape."""
    check(query, key, *rest)  # type: ignore[call-arg, arg-type]
    batch, heads, q_len, _ = query.shape
    block_q, block_k = rest[3:5]
    shape = (batch, heads, ceil_div(q_len, block_q), n_words(ceil_div(key.shape[2], block_k)))
    return query.new_empty(shape, dtype=torch.int32)


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
) -> Tensor:
    """Per query block, the key blocks that sampled rows give too much attention to be left out.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D] in float32, bfloat16 or float16. The attention of ``rows`` rows
    of a query block is exact. Their shares, averaged, are left out from the smallest on, as long as a share
    times (itself and twice what was left out before it) stays below ``budget`` squared: the square of what is
    left out grows by that. A block is kept, too, if the shares of its keys reach ``tau`` in their 2-norm over
    rows, ``block_q`` of them for those that were sampled. Prompts of more than 16384 keys sample half as many
    rows each time they double, 4 at least. The sink block and ``window_slashes`` >= 1 block diagonals are
    always kept; ``budget`` 0 or ``tau`` 0 keeps every block that causality allows. Returns int32
    [B, Hq, n_query_blocks, n_words]. Source: docs/pretrained.md. Raises ValueError for arguments that do not
    fit.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    where = (key_segment, scale, q_offset, block_q, block_k)
    arguments = (*where, budget, tau, rows, keep_sink, window_slashes)
    check(query, key, *arguments)
    return torch.ops.sampleattn.select_budget.default(query, key, *arguments)


def rows_of_a_block(rows: int, k_len: int, block_q: int) -> int:
    """How many rows of a query block are sampled: at most ``rows``, fewer for long prompts."""
    least, keys = min(LEAST_ROWS, rows), FULL_KEYS
    while rows > least and k_len > keys:
        rows, keys = rows // 2, keys * 2
    return min(rows, block_q)


def first_row(query_block: int | Tensor, step: int) -> int | Tensor:
    """Where in a query block the rows begin that are sampled every ``step`` rows: it moves from block to
    block."""
    return (5 * query_block + 3) % step
