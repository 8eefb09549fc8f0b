"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.blocks import unpack_bits
from ..shared.eager import block_mass, row_chunks, rows_of
from ..shared.rows import row_ends, sampled_rows
from ..shared.shapes import ceil_div


def attention_mass(
    query: Tensor,
    key: Tensor,
    block_mask: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    chunk_n: int,
    sample_rows: int,
    block_q: int,
    block_k: int,
) -> Tensor:
    n_key_blocks = ceil_div(key.shape[2], block_k)
    ends = row_ends(key_segment, query.shape[2], q_offset, query.device)
    rows, valid = sampled_rows(ends, chunk_n, sample_rows)
    smallest = query.new_ones(query.shape[:2], dtype=torch.float32)
    for part in row_chunks(query, key, rows.shape[1], 1):
        mass = block_mass(query, key, key_segment, scale, q_offset, rows[:, part], valid[:, part], block_k)
        kept = unpack_bits(rows_of(block_mask, rows[:, part] // block_q), n_key_blocks)
        total = mass.sum(-1)
        share = torch.where(total > 0, (mass * kept).sum(-1) / torch.where(total > 0, total, 1), 1)
        smallest = torch.minimum(smallest, share.amin(-1))
    return smallest
