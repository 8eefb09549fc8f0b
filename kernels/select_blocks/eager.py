"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.blocks import pack_bits, slash_blocks
from ..shared.forced import forced_blocks
from ..shared.rows import block_stops, row_ends
from ..shared.visibility import allowed_blocks, visible_blocks
from .op import Arguments


def select_blocks(a: Arguments) -> Tensor:
    columns = _fewest_reaching(a.column_scores, a.alpha_c)
    slashes = _fewest_reaching(a.slash_scores, a.alpha_s)
    if a.alpha_c >= 1 or a.alpha_s >= 1:
        columns = torch.ones_like(columns)
    grid, device = a.grid, columns.device
    visible = visible_blocks(a.key_segment, a.block_k)
    ends = row_ends(a.key_segment, a.q_len, a.q_offset, device)
    stops = block_stops(ends, a.q_len, a.block_q)
    kept = columns[:, :, None] | slash_blocks(slashes, *grid[:5], stops)
    kept = kept | forced_blocks(grid, a.forced, visible, ends, device)[:, None]
    return pack_bits(kept & allowed_blocks(grid, visible, stops)[:, None])


def _fewest_reaching(scores: Tensor, alpha: float) -> Tensor:
    """Bool [..., n] for scores [..., n]: the fewest entries, largest first, that reach alpha of the total."""
    if alpha >= 1:
        return torch.ones_like(scores, dtype=torch.bool)
    ordered, order = scores.double().sort(dim=-1, descending=True, stable=True)
    cumulated = ordered.cumsum(-1)
    before = cumulated - ordered
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before < alpha * cumulated[..., -1:])
