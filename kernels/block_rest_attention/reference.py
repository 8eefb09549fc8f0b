"""The oracle in float64. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..block_sparse_attention.reference import block_sparse_attention
from .op import Arguments


def block_rest_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    """Attention over kept blocks, and a part of what sampled rows get from the others."""
    out, lse = block_sparse_attention(a.of_kept_blocks._replace(sinks=None))
    value, share, level = (
        x.double().repeat_interleave(a.block_q, 2)[:, :, : lse.shape[2]]
        for x in (a.rest_value, a.rest_share, a.rest_level)
    )
    sees, some = lse > -torch.inf, share > 0
    value, share = torch.where(some[..., None], value, 0), torch.where(some, share, 0)
    ratio = torch.where(sees & some, a.part * torch.exp(level - lse).clamp(max=1), 0)
    left = ratio * share
    out = (1 - left)[..., None] * out + ratio[..., None] * value
    if a.sinks is not None:
        # The left-out part is beside the kept keys, of which it makes left / (1 - left).
        with_rest = lse - torch.log1p(-left)
        out = out * torch.where(sees, torch.sigmoid(with_rest - a.sinks.double()[:, None]), 0)[..., None]
    return out, lse
