"""The oracle in float64, with an index and without. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.grid import Grid
from ..shared.reference import kept_entries, masked_entries, repeat_heads, row_groups
from .op import Arguments


def block_sparse_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    """Attention over the visible entries of kept blocks; a row without any gives 0 and lse -inf."""
    results = []
    for rows in row_groups(torch.arange(a.query.shape[2], device=a.query.device)):
        kept = kept_entries(a.block_mask, rows, a.key.shape[2], a.block_q, a.block_k)
        visible = masked_entries(a, rows)[:, None] & kept
        results.append(_attend(a.query, a.key, a.value, rows, visible, a.scale))
    out, lse = (torch.cat(parts, 2) for parts in zip(*results, strict=True))
    return with_sinks(out, lse, a.sinks), lse


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor | None) -> Tensor:
    """What a logit a head beside a row's scores leaves of ``out``; a row without a key has nothing."""
    if sinks is None:
        return out
    share = torch.where(lse == -torch.inf, 0.0, torch.sigmoid(lse - sinks.double()[:, None]))
    return out * share[..., None]


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    causal: bool,
    q_offset: int = 0,
    window: int = 0,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention under the predicate, every block kept: float64 out [B, Hq, Sq, Dv] and lse [B, Hq, Sq]."""
    grid = Grid(query.shape[2], key.shape[2], q_offset, 128, 128)
    shape = (1, 1, grid.n_query_blocks, grid.n_words)
    every_block = torch.full(shape, -1, dtype=torch.int32, device=query.device)
    where = (query_segment, key_segment, None, scale, causal, q_offset, window, grid.block_q, grid.block_k)
    return block_sparse_attention(Arguments(query, key, value, every_block, *where))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, visible: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention of some rows over their visible entries; what is not visible is never multiplied."""
    group = query.shape[1] // key.shape[1]
    scores = scale * query[:, :, rows].double() @ repeat_heads(key, group).transpose(-1, -2)
    scores = scores.masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().masked_fill(~visible, 0.0)
    values = repeat_heads(value, group)
    unusable = ~values.isfinite()
    out = weights @ values.masked_fill(unusable, 0.0)
    sees_unusable = visible.expand_as(weights).double() @ unusable.double() > 0
    return out.masked_fill(sees_unusable, torch.nan), lse
