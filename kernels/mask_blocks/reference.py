"""The oracle in float64, to be read beside the paper (arXiv 2406.15486). Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.reference import (
    visible_entries,
)


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
    """The blocks with at least one visible entry, exactly (the op may keep more where segments are given)."""
    q_len, k_len = query.shape[2], key.shape[2]
    n_query_blocks, n_key_blocks = -(-q_len // block_q), -(-k_len // block_k)
    blocks = []
    for i in range(n_query_blocks):
        rows = torch.arange(i * block_q, min((i + 1) * block_q, q_len), device=query.device)
        visible = visible_entries(
            rows,
            k_len,
            causal=causal,
            q_offset=q_offset,
            window=window,
            query_segment=query_segment,
            key_segment=key_segment,
        )
        reached = visible.any(1)  # [B|1, Sk]
        blocks.append(
            torch.stack(
                [reached[:, j * block_k : (j + 1) * block_k].any(-1) for j in range(n_key_blocks)], -1
            )
        )
    words = torch.zeros(
        blocks[0].shape[0], 1, n_query_blocks, max(2, -(-n_key_blocks // 32)), dtype=torch.int64
    )
    for i, block_row in enumerate(blocks):
        for j in range(n_key_blocks):
            words[:, 0, i, j // 32] |= block_row[:, j].cpu().long() << (j % 32)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return words.to(torch.int32).to(query.device)
