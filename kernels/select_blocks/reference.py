"""The oracle in float64, to be read beside the paper (arXiv 2406.15486). Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.reference import blocks_of_rows, packed, prompt_ends, rows_of_block
from .op import Arguments


def select_blocks(a: Arguments) -> Tensor:
    """Score-based filtering, extended to strips: block by block as the definition reads."""
    batch, heads, n_key_blocks = a.column_scores.shape
    grid = a.grid
    kept = torch.zeros(batch, heads, grid.n_query_blocks, n_key_blocks, dtype=torch.bool)
    for b, end in enumerate(prompt_ends(a.key_segment, batch, a.q_len, a.q_offset)):
        for h in range(heads):
            columns = fewest_reaching(a.column_scores[b, h].tolist(), a.alpha_c)
            slashes = fewest_reaching(a.slash_scores[b, h].tolist(), a.alpha_s)
            for i in range(grid.n_query_blocks):
                rows = rows_of_block(i, a.block_q, a.q_len, end)
                allowed, forced = blocks_of_rows(grid, a.forced, a.key_segment, b, rows, end)
                for j in allowed:
                    own_slashes = {(row + a.q_offset) // a.block_k - j for row in rows}
                    kept[b, h, i, j] = (
                        a.alpha_c >= 1
                        or a.alpha_s >= 1
                        or j in columns
                        or bool(own_slashes & slashes)
                        or j in forced
                    )
    return packed(kept).to(a.column_scores.device)


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
