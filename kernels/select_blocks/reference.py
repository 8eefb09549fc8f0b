"""The oracle in float64, to be read beside the paper (arXiv 2406.15486). Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.reference import (
    prompt_ends,
    rows_of_block,
)


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
    """Score-based filtering, extended to strips: block by block as the definition reads."""
    batch, heads, n_key_blocks = column_scores.shape
    n_query_blocks = -(-q_len // block_q)
    words = torch.zeros(batch, heads, n_query_blocks, max(2, -(-n_key_blocks // 32)), dtype=torch.int64)
    for b, end in enumerate(prompt_ends(key_segment, batch, q_len, q_offset)):
        visible_blocks = list(range(n_key_blocks))
        if key_segment is not None:
            ids = key_segment[b % key_segment.shape[0]].tolist()
            visible_blocks = [j for j in visible_blocks if 0 in ids[j * block_k : (j + 1) * block_k]]
        for h in range(heads):
            columns = fewest_reaching(column_scores[b, h].tolist(), alpha_c)
            slashes = fewest_reaching(slash_scores[b, h].tolist(), alpha_s)
            for i in range(n_query_blocks):
                rows = rows_of_block(i, block_q, q_len, end)
                whole = any(end - last_rows <= row < end for row in rows)
                positions = [row + q_offset for row in rows]
                for j in visible_blocks:
                    offsets = {p // block_k - j for p in positions}
                    kept = (
                        (alpha_c >= 1 or alpha_s >= 1 or whole)
                        or j in columns
                        or bool(offsets & slashes)
                        or (keep_sink and j == visible_blocks[0])
                        or min(offsets) < window_slashes
                    )
                    if kept and j * block_k <= positions[-1]:
                        words[b, h, i, j // 32] |= 1 << (j % 32)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return words.to(torch.int32).to(column_scores.device)


def fewest_reaching(scores: list[float], alpha: float) -> set[int]:
    """The fewest indices, largest score first (ties: lower index), whose sum reaches alpha of the total."""
    if alpha >= 1:
        return set(range(len(scores)))
    total, before, kept = sum(scores), 0.0, set()
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if not before < alpha * total:
            break
        kept.add(index)
        before += scores[index]
    return kept
