"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.blocks import pack_bits
from ..shared.shapes import ceil_div, query_block_positions


def mask_blocks(
    query: Tensor,
    key: Tensor,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    causal: bool,
    q_offset: int,
    window: int,
    block_q: int,
    block_k: int,
) -> Tensor:
    device = query.device
    q_len, k_len = query.shape[2], key.shape[2]
    first, last = query_block_positions(q_len, q_offset, block_q, device)
    key_first = torch.arange(ceil_div(k_len, block_k), device=device) * block_k
    key_last = (key_first + block_k).clamp(max=k_len) - 1
    kept = torch.ones((first.numel(), key_first.numel()), dtype=torch.bool, device=device)
    if causal:
        kept = kept & (key_first <= last[:, None])
    if window > 0:
        kept = kept & (key_last > first[:, None] - window)
    # With both, the rows' reaches p - window + 1 .. p join to one interval, so the two tests together are
    # exact.
    kept = kept[None, None].expand(segment_batch(query_segment, key_segment), 1, -1, -1)
    if key_segment is None and query_segment is None:
        return pack_bits(kept)
    q_low, q_high = _segment_range(query_segment, q_len, block_q, device)
    k_low, k_high = _segment_range(key_segment, k_len, block_k, device)
    meet = (k_low[:, None] <= q_high[..., None]) & (k_high[:, None] >= q_low[..., None])
    return pack_bits(kept & meet[:, None])


def segment_batch(query_segment: Tensor | None, key_segment: Tensor | None) -> int:
    """Batch size of what depends on the segments: 1 unless one of them differs along the batch."""
    for segment in (query_segment, key_segment):
        if segment is not None and segment.shape[0] != 1:
            return segment.shape[0]
    return 1


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
