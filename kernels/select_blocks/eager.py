"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.blocks import pack_bits, slash_blocks
from ..shared.rows import block_stops, blocks_of_last_rows, row_ends, seen_blocks
from ..shared.visibility import forced_blocks, visible_blocks


def select_blocks(
    column_scores: Tensor,
    slash_scores: Tensor,
    key_segment: Tensor | None,
    q_len: int,
    k_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    alpha_c: float,
    alpha_s: float,
    keep_sink: bool,
    window_slashes: int,
    last_rows: int,
) -> Tensor:
    device = column_scores.device
    columns = _fewest_reaching(column_scores, alpha_c)
    slashes = _fewest_reaching(slash_scores, alpha_s)
    if alpha_c >= 1 or alpha_s >= 1:
        columns = torch.ones_like(columns)
    visible = visible_blocks(key_segment, block_k)
    sizes = (q_len, k_len, q_offset, block_q, block_k)
    forced = forced_blocks(visible, *sizes, keep_sink, window_slashes, device)
    ends = row_ends(key_segment, q_len, q_offset, device)
    stops = block_stops(ends, q_len, block_q)
    kept = columns[:, :, None] | slash_blocks(slashes, *sizes, stops)
    kept = kept | forced[:, None]
    kept = kept | blocks_of_last_rows(ends, q_len, block_q, last_rows)[:, None, :, None]
    kept = kept & seen_blocks(stops, k_len, q_offset, block_k)[:, None]
    if visible is not None:
        kept = kept & visible[:, None, None]
    return pack_bits(kept)


def _fewest_reaching(scores: Tensor, alpha: float) -> Tensor:
    """Bool [..., n] for scores [..., n]: the fewest entries, largest first, that reach alpha of the total."""
    if alpha >= 1:
        return torch.ones_like(scores, dtype=torch.bool)
    ordered, order = scores.double().sort(dim=-1, descending=True, stable=True)
    cumulated = ordered.cumsum(-1)
    before = cumulated - ordered
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before < alpha * cumulated[..., -1:])
