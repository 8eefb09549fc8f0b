"""The oracle in float64, to be read beside the paper (arXiv 2406.15486). Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.grid import Grid
from ..shared.reference import masked_entries, packed
from .op import Arguments


def mask_blocks(a: Arguments) -> Tensor:
    """The blocks with at least one visible entry, exactly (the op may keep more where segments are given)."""
    grid, block_rows = Grid.of(a), []
    for i in range(grid.n_query_blocks):
        rows = torch.arange(i * a.block_q, min((i + 1) * a.block_q, grid.q_len), device=a.query.device)
        reached = masked_entries(a, rows).any(1)  # [B|1, Sk]
        block_rows.append(torch.stack([block.any(-1) for block in reached.split(a.block_k, -1)], -1))
    return packed(torch.stack(block_rows, 1)[:, None])
