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
from .op import Arguments


def attention_mass(a: Arguments) -> Tensor:
    """Smallest share of a sampled row's attention that lies in kept blocks; rows without keys count as 1."""
    (batch, heads, q_len, _), device, kv_len = a.query.shape, a.query.device, a.key.shape[2]
    smallest = torch.ones((batch, heads), dtype=torch.float64, device=device)
    first_keys = torch.arange(0, kv_len, a.block_k, device=device)
    for b, end in enumerate(prompt_ends(a.key_segment, batch, q_len, a.q_offset)):
        rows = sampled_rows(end, a.chunk_n, a.sample_rows)
        for row, mass in block_masses(a, a.block_k, b, rows):
            at = torch.tensor([row], device=device)
            kept = kept_entries(a.block_mask, at, kv_len, a.block_q, a.block_k)[:, :, 0, first_keys]
            share = (mass * kept[b % kept.shape[0]]).sum(-1)
            smallest[b] = torch.minimum(smallest[b], torch.where(mass.sum(-1) > 0, share, 1.0))
    return smallest
