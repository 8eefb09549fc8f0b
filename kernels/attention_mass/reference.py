"""The oracle in float64, to be read beside the paper (arXiv 2406.15486). Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.reference import (
    block_masses,
    kept_entries,
    prompt_ends,
    sampled_rows,
)


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
    """Smallest share of a sampled row's attention that lies in kept blocks; rows without keys count as 1."""
    smallest = torch.ones(query.shape[:2], dtype=torch.float64, device=query.device)
    first_keys = torch.arange(0, key.shape[2], block_k, device=query.device)
    for b, end in enumerate(prompt_ends(key_segment, query.shape[0], query.shape[2], q_offset)):
        rows = sampled_rows(end, chunk_n, sample_rows)
        for row, mass in block_masses(query, key, key_segment, scale, q_offset, b, rows, block_k):
            at = torch.tensor([row], device=query.device)
            kept = kept_entries(block_mask, at, key.shape[2], block_q, block_k)[:, :, 0, first_keys]
            share = (mass * kept[b % kept.shape[0]]).sum(-1)
            smallest[b] = torch.minimum(smallest[b], torch.where(mass.sum(-1) > 0, share, 1.0))
    return smallest
