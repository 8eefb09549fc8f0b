"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..block_mean_attention.eager import mean_of_blocks
from ..select_budget.eager import kept_blocks
from ..shared.blocks import pack_bits, unpack_bits
from .op import Arguments


def select_budget_rest(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept, allowed, sampled = kept_blocks(a.of_budget)
    kept = (kept | unpack_bits(a.block_mask, kept.shape[-1])) & allowed
    left_out = torch.where(allowed & ~kept, sampled.of_keys, 0.0)
    mean_value = mean_of_blocks(a.value, a.key_segment, a.block_k)
    mean_value = torch.where(mean_value.isfinite(), mean_value, 0.0)
    # Not log1p of minus the share that is left out: of little that is kept it would be roundings.
    level = sampled.level + torch.where(kept, sampled.of_keys, 0.0).sum(-1).log()
    group = a.query.shape[1] // a.key.shape[1]
    return pack_bits(kept), left_out @ mean_value.repeat_interleave(group, 1), left_out.sum(-1), level
