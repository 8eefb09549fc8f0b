"""The grid of blocks that an attention matrix is cut into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .record import Blocked
from .shapes import Rows, ceil_div, n_words, query_block_positions, row_positions


class Grid(NamedTuple):
    """``q_len`` rows, the first at position ``q_offset``, by ``kv_len`` keys, in blocks.

    Query block i begins at position ``q_offset + i * q_stride * block_q``.
    """

    q_len: int
    kv_len: int
    q_offset: int
    block_q: int
    block_k: int
    q_stride: int = 1

    @classmethod
    def of(cls, a: Blocked) -> Grid:
        """The grid of a record that has queries and keys."""
        return cls(a.query.shape[2], a.key.shape[2], a.q_offset, a.block_q, a.block_k, a.q_stride)

    def positions(self, rows: Rows) -> Rows:
        """Where rows stand."""
        return row_positions(rows, self.q_offset, self.q_stride, self.block_q)

    def query_block_positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions of the first and last row of every query block, int64 [n_query_blocks]."""
        return query_block_positions(self.q_len, self.q_offset, self.block_q, device, self.q_stride)

    @property
    def n_query_blocks(self) -> int:
        return ceil_div(self.q_len, self.block_q)

    @property
    def n_key_blocks(self) -> int:
        return ceil_div(self.kv_len, self.block_k)

    @property
    def n_words(self) -> int:
        """int32 words of a row of the index."""
        return n_words(self.n_key_blocks)


def new_index(like: Tensor, batch_and_heads: Sequence[int], grid: Grid) -> Tensor:
    """An index that nobody has written yet, int32 [B|1, Hq|1, n_query_blocks, n_words] (see ``blocks``)."""
    return like.new_empty((*batch_and_heads, grid.n_query_blocks, grid.n_words), dtype=torch.int32)
