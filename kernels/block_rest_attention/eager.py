"""The op: ``block_sparse_attention``, and the rest's part in plain PyTorch, fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from .op import Arguments


def block_rest_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.sampleattn.block_sparse_attention.default(*a.of_kept_blocks)
    # In place, into outputs that nobody else has yet: at 1M tokens a second output would take gigabytes.
    add_rest_(a, out, lse)
    return out, lse


def add_rest_(a: Arguments, out: Tensor, lse: Tensor) -> None:
    """Add the rest's part, in place, to what ``block_sparse_attention`` gave for kept blocks."""
    for block in range(a.rest_share.shape[2]):
        rows = slice(block * a.block_q, (block + 1) * a.block_q)
        kept, level, share = lse[:, :, rows], a.rest_level[:, :, block, None], a.rest_share[:, :, block, None]
        counts = (share > 0) & (kept > -torch.inf)
        ratio = torch.where(counts, a.part * torch.exp(level - kept).clamp(max=1), 0)
        stays = torch.where(counts, 1 - ratio * share, 1)
        if a.sinks is not None:
            # `out` has the sink's share of the kept keys' mass; now it is its share of more.
            sink = torch.exp(a.sinks[:, None] - kept)
            more = 1 + stays * sink
            stays = torch.where(sink < torch.inf, stays * (1 + sink) / more, 0)
            ratio = ratio / more
        with_rest = out[:, :, rows].float() * stays[..., None]
        with_rest += ratio[..., None] * a.rest_value[:, :, block, None]
        out[:, :, rows] = torch.where(counts[..., None], with_rest, out[:, :, rows]).to(out.dtype)
