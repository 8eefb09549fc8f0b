"""The oracle in float64, to be read beside the paper (arXiv 2406.15486). Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.reference import (
    block_masses,
    prompt_ends,
    sampled_rows,
)
from .op import Arguments


def sample_scores(a: Arguments) -> tuple[Tensor, Tensor]:
    """Mean sampled attention of every key block and block diagonal, over the rows that can see it."""
    query, q_offset, block_k = a.query, a.q_offset, a.block_k
    n_key_blocks = -(-a.key.shape[2] // block_k)
    column = torch.zeros(*query.shape[:2], n_key_blocks, dtype=torch.float64, device=query.device)
    slash = torch.zeros_like(column)
    for b, end in enumerate(prompt_ends(a.key_segment, query.shape[0], query.shape[2], q_offset)):
        column_rows = [0] * n_key_blocks
        slash_rows = [0] * n_key_blocks
        rows = sampled_rows(end, a.chunk_n, a.sample_rows)
        for row, mass in block_masses(a, block_k, b, rows):
            position = row + q_offset
            for j in range(n_key_blocks):
                s = position // block_k - j
                column[b, :, j] += mass[:, j]
                column_rows[j] += position >= j * block_k
                slash_rows[j] += position // block_k >= j
                if 0 <= s < n_key_blocks:
                    slash[b, :, s] += mass[:, j]
        for j in range(n_key_blocks):
            column[b, :, j] /= max(column_rows[j], 1)
            slash[b, :, j] /= max(slash_rows[j], 1)
    return column, slash
