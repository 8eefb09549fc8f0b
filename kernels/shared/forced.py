"""Which blocks are kept whatever a selection finds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .grid import Grid
from .rows import blocks_of_last_rows


class Forced(NamedTuple):
    """The first block that holds a valid key, diagonals of blocks, and all blocks of a prompt's last rows."""

    keep_sink: bool
    window_slashes: int
    last_rows: int = 0


def forced_blocks(
    grid: Grid, forced: Forced, visible: Tensor | None, ends: Tensor | None, device: torch.device
) -> Tensor:
    """Bool [B|1, n_query_blocks, n_key_blocks].

    ``visible``: those of ``visibility.visible_blocks``; ``ends``: those of ``rows.row_ends``, which are asked
    for where last rows are forced.
    """
    key_block = torch.arange(grid.n_key_blocks, device=device)
    first, _ = grid.query_block_positions(device)
    blocks = ((first // grid.block_k)[:, None] - key_block < forced.window_slashes)[None]
    if forced.last_rows:
        assert ends is not None
        whole = blocks_of_last_rows(ends, grid.q_len, grid.block_q, forced.last_rows)
        blocks = blocks | whole[..., None]
    if not forced.keep_sink:
        return blocks
    if visible is None:
        return blocks | (key_block == 0)
    return blocks | (visible & (visible.cumsum(-1) == 1))[:, None]
