"""Which key blocks hold a key that may be seen, which entries a mask allows, which blocks are always kept."""

from __future__ import annotations

import torch
from torch import Tensor

from .shapes import blocks_of_keys, ceil_div, query_block_positions


def visible_blocks(key_segment: Tensor | None, block_k: int) -> Tensor | None:
    """Bool [B|1, n_key_blocks]: the block holds a valid key; None: every block does."""
    return None if key_segment is None else blocks_of_keys(key_segment == 0, block_k).any(-1)


def visible_and_sinks(
    key_segment: Tensor | None, n: int, block_k: int, keep_sink: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """int8 [B|1, n]: the block holds a valid key; int32 [B|1]: the first such, n if not forced."""
    if key_segment is None:
        visible = torch.ones((1, n), dtype=torch.int8, device=device)
        return visible, torch.full((1,), 0 if keep_sink else n, dtype=torch.int32, device=device)
    padded = torch.nn.functional.pad(key_segment == 0, (0, n * block_k - key_segment.shape[1]))
    seen = padded.unflatten(-1, (n, block_k)).any(-1)
    block = torch.arange(n, dtype=torch.int32, device=device)
    sinks = torch.where(seen, block, n).amin(-1) if keep_sink else torch.full_like(seen[:, 0].int(), n)
    return seen.to(torch.int8), sinks.int()


def forced_blocks(
    visible: Tensor | None,
    q_len: int,
    k_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    keep_sink: bool,
    window_slashes: int,
    device: torch.device,
) -> Tensor:
    """Bool [B|1, n_query_blocks, n_key_blocks]: in one of the main slashes, or the first visible block."""
    key_block = torch.arange(ceil_div(k_len, block_k), device=device)
    first, _ = query_block_positions(q_len, q_offset, block_q, device)
    forced = ((first // block_k)[:, None] - key_block < window_slashes)[None]
    if not keep_sink:
        return forced
    if visible is None:
        return forced | (key_block == 0)
    return forced | (visible & (visible.cumsum(-1) == 1))[:, None]


def allowed_entries(position: Tensor, k_len: int, causal: bool, window: int) -> Tensor:
    """Bool [..., Sk] for positions of any shape."""
    key = torch.arange(k_len, device=position.device)
    allowed = torch.ones((*position.shape, k_len), dtype=torch.bool, device=position.device)
    if causal:
        allowed = allowed & (key <= position[..., None])
    if window > 0:
        allowed = allowed & (key > position[..., None] - window)
    return allowed
