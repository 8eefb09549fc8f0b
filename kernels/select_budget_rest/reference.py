"""The oracle in float64. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..select_budget import reference as budget
from ..shared.blocks import unpack_bits
from ..shared.grid import Grid
from ..shared.reference import causal_entries
from ..shared.shapes import blocks_of_keys
from .op import Arguments


def select_budget_rest(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bool [B, Hq, n_query_blocks, n_key_blocks], and float64 as the op's other results."""
    grid, of_budget = Grid.of(a), a.of_budget
    *_, allowed = budget.growths(of_budget)
    kept = budget.select_budget(of_budget) | (unpack_bits(a.block_mask, grid.n_key_blocks) & allowed)
    return kept, *rest_of(a, allowed & ~kept)


def rest_of(a: Arguments, left_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``rest_value``, ``rest_share`` and ``rest_level`` of the blocks that are left out."""
    batch, heads, n_query_blocks, _ = left_out.shape
    group, valid = heads // a.key.shape[1], torch.ones(batch, a.key.shape[2], dtype=torch.bool)
    if a.key_segment is not None:
        valid = (a.key_segment == 0).expand(batch, -1).cpu()
    value = torch.zeros(batch, heads, n_query_blocks, a.value.shape[3], dtype=torch.float64)
    share = torch.zeros(batch, heads, n_query_blocks, dtype=torch.float64)
    level = torch.full_like(share, -torch.inf)
    mean_value = mean_values(a, valid)
    for b in range(batch):
        for i in range(n_query_blocks):
            rows = budget.sampled_rows(a.of_budget, i)
            visible = causal_entries(a.of_budget, b, rows)[0]
            sees = visible.any(-1)
            if not sees.any():
                continue
            for h in range(heads):
                keys = a.key[b, h // group].double().nan_to_num()
                scores = (a.scale * (a.query[b, h, rows].double() @ keys.T)).masked_fill(~visible, -torch.inf)
                weights = scores[sees].softmax(-1).mean(0)
                of_block = blocks_of_keys(weights, a.block_k).sum(-1).cpu()
                out = left_out[b, h, i].cpu()
                value[b, h, i] = (of_block * out) @ mean_value[b, h // group]
                share[b, h, i] = of_block[out].sum()
                level[b, h, i] = scores[sees].logsumexp(-1).mean().cpu() + of_block[~out].sum().log()
    device = a.query.device
    return value.to(device), share.to(device), level.to(device)


def mean_values(a: Arguments, valid: Tensor) -> Tensor:
    """[B, Hkv, n_key_blocks, Dv], 0 where it is not finite; ``valid`` bool [B, Sk]."""
    values = a.value.double().cpu().masked_fill(~valid[:, None, :, None], 0)
    sums = blocks_of_keys(values.mT, a.block_k).sum(-1).mT
    count = blocks_of_keys(valid, a.block_k).sum(-1)[:, None, :, None]
    return torch.where(sums.isfinite(), sums / count.clamp(min=1), 0)
