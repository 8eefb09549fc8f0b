"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..defaults import LANDMARK_TAKEN as TAKEN
from .op import Arguments


def block_representatives(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    key, key_segment, block_k, landmarks = a
    batch, heads, kv_len, dim = key.shape
    missing = -kv_len % block_k
    valid = torch.ones((1, kv_len), dtype=torch.bool, device=key.device)
    if key_segment is not None:
        valid = key_segment == 0
    valid = torch.nn.functional.pad(valid, (0, missing)).unflatten(-1, (-1, block_k))[:, None]
    keys = torch.nn.functional.pad(key, (0, 0, 0, missing)).unflatten(2, (-1, block_k))
    keys = torch.where(valid[..., None], keys, 0)  # [B, Hkv, n_key_blocks, block_k, D]
    order, exists = landmark_keys(keys.double(), valid, landmarks)
    marks = keys.gather(3, order[..., None].expand(*order.shape, dim))
    chosen = torch.zeros(keys.shape[:-1], dtype=torch.bool, device=key.device).scatter(-1, order, True)
    others = (valid & ~chosen)[..., None]
    count = others.sum(-2).double()  # [B, Hkv, n_key_blocks, 1]
    mean = torch.where(others, keys, 0).double().sum(-2) / count.clamp(min=1)
    distance = torch.where(others, keys - mean[..., None, :], 0)
    spread = distance.square().sum((-1, -2)) / (count[..., 0].clamp(min=1) * max(dim, 1))
    mark_weight = torch.where(exists, 0.0, -torch.inf).double()
    log_weights = torch.cat((count.log(), mark_weight), -1)
    spreads = torch.cat((spread[..., None], torch.zeros_like(mark_weight)), -1)
    representatives = torch.cat((mean.to(key.dtype)[..., None, :], marks), 3)
    by_member = (tensor.transpose(2, 3).contiguous() for tensor in (representatives, log_weights, spreads))
    representatives, log_weights, spreads = by_member
    return representatives, log_weights.float(), spreads.float()


def landmark_keys(keys: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which of every block's keys are its landmarks, and whether there is one: [B, Hkv, n_key_blocks, count].

    keys: float64 [B, Hkv, n_key_blocks, block_k, D], 0 where not ``valid`` [B|1, 1, n_key_blocks, block_k].
    """
    left = torch.where(valid, keys.square().sum(-1), -1.0)  # of the squared norms
    flat = valid.flatten(2)
    first_key = (flat & (flat.cumsum(-1) == 1)).unflatten(-1, valid.shape[2:])
    order, exists = [], []
    columns: list[tuple[Tensor, Tensor]] = []  # what was left of the keys' products with each landmark
    for mark in range(count):
        ranked = left.masked_fill(first_key, torch.inf) if mark == 0 else left
        best = ranked.argmax(-1, keepdim=True)
        strength = left.gather(-1, best)
        order.append(best)
        exists.append(strength >= 0)
        landmark = keys.gather(3, best[..., None].expand(*best.shape, keys.shape[-1]))
        column = (keys @ landmark.transpose(-1, -2))[..., 0]
        for earlier, norm in columns:
            column = column - TAKEN * earlier * earlier.gather(-1, best) / norm
        norm = strength.clamp(min=torch.finfo(torch.float32).tiny)
        columns.append((column, norm))
        left = torch.where(left >= 0, (left - TAKEN * column.square() / norm).clamp(min=0), left)
        left = left.scatter(-1, best, -2.0)
    empty = keys.new_zeros((*keys.shape[:3], 0), dtype=torch.int64)
    return torch.cat((empty, *order), -1), torch.cat((empty.bool(), *exists), -1)
