"""The oracle in float64. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..block_sparse_attention.reference import block_sparse_attention, with_sinks
from ..shared.reference import (
    kept_entries,
    repeat_heads,
)
from .op import Arguments


def block_mean_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    """Attention over kept blocks, and over the means of dropped ones. Source: docs/accuracy.md.

    Block j of keys is dropped for block i of rows if its bit is not set and every row sees all of it. Its n
    valid keys count as if all were their mean, and the mean of exponentials as what a normal distribution of
    their spread adds to it, at most n times: the whole mass in one key.
    """
    query, key, value, block_q, block_k = a.query, a.key, a.value, a.block_q, a.block_k
    out, lse = block_sparse_attention(a.of_kept_blocks._replace(sinks=None))
    group, kv_len = query.shape[1] // key.shape[1], key.shape[2]
    valid = torch.ones(1, kv_len, device=key.device) if a.key_segment is None else a.key_segment == 0
    for begin in range(0, query.shape[2], block_q):
        rows = slice(begin, begin + block_q)
        scaled = a.scale * query[:, :, rows].double()
        # Log mass of a part, and the value that it weighs.
        terms = [(lse[:, :, rows].clone(), out[:, :, rows].clone())]
        for first_key in range(0, kv_len, block_k):
            keys = slice(first_key, min(first_key + block_k, kv_len))
            if keys.stop - 1 > begin + a.q_offset:
                continue
            own = valid[:, keys].double()
            mean_key, spread = _mean(key[:, :, keys], own)
            mean_value, _ = _mean(value[:, :, keys], own)
            log_count = own.sum(-1).log()[:, None, None]  # [B|1, 1, 1]
            gain = 0.5 * scaled.square().sum(-1) * repeat_heads(spread, group)
            mass = (
                (scaled * repeat_heads(mean_key, group)).sum(-1) + log_count + torch.minimum(gain, log_count)
            )
            at = torch.tensor([begin], device=key.device)
            kept = kept_entries(a.block_mask, at, kv_len, block_q, block_k)[..., first_key]  # [B|1, Hq|1, 1]
            terms.append(
                (mass.masked_fill(kept | (log_count < 0), -torch.inf), repeat_heads(mean_value, group))
            )
        total = torch.stack([mass for mass, _ in terms]).logsumexp(0)
        weighed = [(mass - total).exp()[..., None] * of for mass, of in terms]
        there = [mass[..., None] > -torch.inf for mass, _ in terms]
        parts = [torch.where(one, part, 0.0) for one, part in zip(there, weighed, strict=True)]
        lse[:, :, rows], out[:, :, rows] = total, torch.stack(parts).sum(0)
    return with_sinks(out, lse, a.sinks), lse


def _mean(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean valid row of x [B, Hkv, n, C], float64 [B, Hkv, 1, C], and the rows' variance [B, Hkv, 1]."""
    rows = valid[:, None, :, None] > 0
    count = valid.sum(-1)[:, None, None, None].clamp(min=1)
    mean = torch.where(rows, x.double(), 0.0).sum(2, keepdim=True) / count
    distance = torch.where(rows, x.double() - mean, 0.0)
    return mean, distance.square().mean(-1).sum(-1, keepdim=True) / count[..., 0]
