"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.eager import block_mass, row_chunks
from ..shared.rows import row_ends, sampled_rows
from ..shared.shapes import ceil_div
from .op import Arguments


def sample_scores(a: Arguments) -> tuple[Tensor, Tensor]:
    query, q_offset, block_k = a.query, a.q_offset, a.block_k
    batch, heads, q_len, _ = query.shape
    n_key_blocks = ceil_div(a.key.shape[2], block_k)
    ends = row_ends(a.key_segment, q_len, q_offset, query.device)
    rows, valid = sampled_rows(ends, a.chunk_n, a.sample_rows)
    column = query.new_zeros((batch, heads, n_key_blocks), dtype=torch.float32)
    slash = torch.zeros_like(column)
    key_block = torch.arange(n_key_blocks, device=query.device)
    for part in row_chunks(query, a.key, rows.shape[1], 1):
        mass = block_mass(a, block_k, rows[:, part], valid[:, part])
        column += mass.sum(-2)
        own = (rows[:, part] + q_offset) // block_k
        source = own[:, None, :, None] - key_block  # key block of slash s, per row
        exists = (source >= 0) & (source < n_key_blocks)
        source = source.clamp(0, max(n_key_blocks - 1, 0)).expand_as(mass)
        slash += torch.where(exists, mass.gather(-1, source), 0).sum(-2)
    position = (rows + q_offset)[..., None]
    sees_column = (valid[..., None] & (position >= key_block * block_k)).sum(1)[:, None]  # [B|1, 1, n]
    sees_slash = (valid[..., None] & (position // block_k >= key_block)).sum(1)[:, None]
    return column / sees_column.clamp(min=1), slash / sees_slash.clamp(min=1)
