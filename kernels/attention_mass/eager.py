"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.blocks import unpack_bits
from ..shared.eager import block_mass, row_chunks, rows_of
from ..shared.rows import row_ends, sampled_rows
from ..shared.shapes import ceil_div
from .op import Arguments


def attention_mass(a: Arguments) -> Tensor:
    query = a.query
    n_key_blocks = ceil_div(a.key.shape[2], a.block_k)
    ends = row_ends(a.key_segment, query.shape[2], a.q_offset, query.device)
    rows, valid = sampled_rows(ends, a.chunk_n, a.sample_rows)
    smallest = query.new_ones(query.shape[:2], dtype=torch.float32)
    for part in row_chunks(query, a.key, rows.shape[1], 1):
        mass = block_mass(a, a.block_k, rows[:, part], valid[:, part])
        kept = unpack_bits(rows_of(a.block_mask, rows[:, part] // a.block_q), n_key_blocks)
        total = mass.sum(-1)
        share = torch.where(total > 0, (mass * kept).sum(-1) / torch.where(total > 0, total, 1), 1)
        smallest = torch.minimum(smallest, share.amin(-1))
    return smallest
