"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.blocks import pack_bits
from ..shared.grid import Grid
from ..shared.shapes import ceil_div
from .op import Arguments, segment_batch


def mask_blocks(a: Arguments) -> Tensor:
    grid, device = Grid.of(a), a.query.device
    first, last = grid.query_block_positions(device)
    key_first = torch.arange(grid.n_key_blocks, device=device) * grid.block_k
    key_last = (key_first + grid.block_k).clamp(max=grid.kv_len) - 1
    kept = torch.ones((first.numel(), key_first.numel()), dtype=torch.bool, device=device)
    if a.causal:
        kept = kept & (key_first <= last[:, None])
    if a.window > 0:
        kept = kept & (key_last > first[:, None] - a.window)
    # With both, the rows' reaches p - window + 1 .. p join to one interval, so the two tests together are
    # exact.
    kept = kept[None, None].expand(segment_batch(a), 1, -1, -1)
    if a.key_segment is None and a.query_segment is None:
        return pack_bits(kept)
    q_low, q_high = _segment_range(a.query_segment, grid.q_len, grid.block_q, device)
    k_low, k_high = _segment_range(a.key_segment, grid.kv_len, grid.block_k, device)
    meet = (k_low[:, None] <= q_high[..., None]) & (k_high[:, None] >= q_low[..., None])
    return pack_bits(kept & meet[:, None])


def _segment_range(
    segment: Tensor | None, length: int, block: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Smallest and largest valid segment id of every block, int32 [B|1, n_blocks]; low > high: none valid."""
    if segment is None:
        segment = torch.zeros((1, length), dtype=torch.int32, device=device)
    limits = torch.iinfo(torch.int32)
    blocks = ceil_div(length, block)
    padded = torch.nn.functional.pad(segment, (0, blocks * block - length), value=-1)
    padded = padded.unflatten(-1, (blocks, block))
    valid = padded >= 0
    low = torch.where(valid, padded, limits.max).amin(-1)
    high = torch.where(valid, padded, limits.min).amax(-1)
    return low, high
