"""The oracle in float64, with an index and without. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.reference import (
    kept_entries,
    repeat_heads,
    row_groups,
    visible_entries,
)


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    scale: float,
    causal: bool,
    q_offset: int,
    window: int,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor]:
    """Attention over the visible entries of kept blocks; a row without any gives 0 and lse -inf."""
    results = []
    for rows in row_groups(torch.arange(query.shape[2], device=query.device)):
        visible = visible_entries(
            rows,
            key.shape[2],
            causal=causal,
            q_offset=q_offset,
            window=window,
            query_segment=query_segment,
            key_segment=key_segment,
        )
        kept = kept_entries(block_mask, rows, key.shape[2], block_q, block_k)
        results.append(_attend(query, key, value, rows, visible[:, None] & kept, scale))
    return torch.cat([out for out, _ in results], 2), torch.cat([lse for _, lse in results], 2)


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
    """Attention under the predicate, without an index: float64 out [B, Hq, Sq, Dv] and lse [B, Hq, Sq]."""
    results = []
    for rows in row_groups(torch.arange(query.shape[2], device=query.device)):
        visible = visible_entries(
            rows,
            key.shape[2],
            causal=causal,
            q_offset=q_offset,
            window=window,
            query_segment=query_segment,
            key_segment=key_segment,
        )
        results.append(_attend(query, key, value, rows, visible[:, None], scale))
    return torch.cat([out for out, _ in results], 2), torch.cat([lse for _, lse in results], 2)


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
