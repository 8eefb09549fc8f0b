"""Which key blocks hold a key that may be seen, which blocks a row reaches, which entries a mask allows."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Grid
from .shapes import blocks_of_keys


def visible_blocks(key_segment: Tensor | None, block_k: int) -> Tensor | None:
    """Bool [B|1, n_key_blocks]: the block holds a valid key; None: every block does."""
    return None if key_segment is None else blocks_of_keys(key_segment == 0, block_k).any(-1)


def allowed_blocks(grid: Grid, visible: Tensor | None, stops: Tensor) -> Tensor:
    """Bool [B|1, n_query_blocks, n_key_blocks]: some row before its block's stop reaches a valid key.

    ``stops``: those of ``rows.block_stops``, the row behind the last one that a query block is chosen for.
    """
    start = torch.arange(grid.n_key_blocks, device=stops.device) * grid.block_k
    allowed = start <= grid.positions(stops - 1)[..., None]
    return allowed if visible is None else allowed & visible[:, None]


def allowed_entries(position: Tensor, kv_len: int, causal: bool, window: int) -> Tensor:
    """Bool [..., Sk] for positions of any shape."""
    key = torch.arange(kv_len, device=position.device)
    allowed = torch.ones((*position.shape, kv_len), dtype=torch.bool, device=position.device)
    if causal:
        allowed = allowed & (key <= position[..., None])
    if window > 0:
        allowed = allowed & (key > position[..., None] - window)
    return allowed
