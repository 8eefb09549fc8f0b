"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..choice import Call
from ..defaults import ALPHA
from ..shared import checks
from ..shared.forced import Forced
from ..shared.grid import Grid, new_index
from ..shared.record import Size

NAME = "select_blocks"
RETURNS = "Tensor"


class Arguments(NamedTuple):
    """See :func:`select_blocks`."""

    column_scores: Tensor
    slash_scores: Tensor
    key_segment: Tensor | None
    q_len: Size
    kv_len: Size
    q_offset: Size
    block_q: int
    block_k: int
    alpha_c: float
    alpha_s: float
    keep_sink: bool
    window_slashes: Size
    last_rows: int

    @property
    def grid(self) -> Grid:
        return Grid(self.q_len, self.kv_len, self.q_offset, self.block_q, self.block_k)

    @property
    def forced(self) -> Forced:
        return Forced(self.keep_sink, self.window_slashes, self.last_rows)


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    batch = a.column_scores.shape[0]
    checks.check_block_size(NAME, block_q=a.block_q, block_k=a.block_k)
    checks.check_scores(NAME, a.column_scores, a.slash_scores, a.kv_len, a.block_k)
    checks.check_segment(NAME, "key_segment", a.key_segment, batch, a.kv_len, a.column_scores)
    checks.check_at_least(NAME, 0, q_len=a.q_len, alpha_c=a.alpha_c, alpha_s=a.alpha_s, last_rows=a.last_rows)


def fake(a: Arguments) -> Tensor:
    """The result's shape."""
    check(a)
    return new_index(a.column_scores, a.column_scores.shape[:2], a.grid)


def kernel(a: Arguments) -> Call:
    """What the kernel is chosen by on a GPU: scores are float32 whatever the model's dtype is."""
    return Call(NAME, a.column_scores.device)


def select_blocks(
    column_scores: Tensor,
    slash_scores: Tensor,
    *,
    q_len: int,
    kv_len: int,
    key_segment: Tensor | None = None,
    q_offset: int = 0,
    block_q: int = 128,
    block_k: int = 128,
    alpha_c: float = ALPHA,
    alpha_s: float = ALPHA,
    keep_sink: bool = True,
    window_slashes: int = 2,
    last_rows: int = 0,
) -> Tensor:
    """The fewest columns and slashes that reach alpha_c and alpha_s of their total, as a block_mask.

    Forced beside them: the first block that holds a key (``keep_sink``), ``window_slashes`` block diagonals,
    and every block of the query blocks that hold a prompt's last ``last_rows`` rows.

    Scores are float32 [B, Hq, n_key_blocks] from :func:`sample_scores`; returns int32 [B, Hq, n_query_blocks,
    n_words]. An alpha of 1 keeps every block that causality allows. Raises ValueError for arguments that do
    not fit.
    """
    where = (key_segment, q_len, kv_len, q_offset, block_q, block_k)
    forced = (keep_sink, window_slashes, last_rows)
    a = Arguments(column_scores, slash_scores, *where, alpha_c, alpha_s, *forced)
    check(a)
    return torch.ops.sampleattn.select_blocks.default(*a)
