"""CRA and SD: how much attention an index keeps, and how little it could keep. Exact, in float64.

Source: arXiv 2406.15486, section 3. With P the softmax of the causal scores and M the kept set, CRA(M) is the
minimum over queries of the kept probability, and SD(alpha) the largest share of causal KV entries that can be
dropped with CRA >= alpha.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sa_compile.kernels.shared import reference
from sa_compile.kernels.shared.blocks import density

__all__ = ["cra", "density", "kept_probability", "sparsity_degree"]


def kept_probability(
    query: Tensor,
    key: Tensor,
    block_mask: Tensor,
    *,
    block_q: int = 128,
    block_k: int = 128,
    scale: float | None = None,
    q_offset: int = 0,
    key_segment: Tensor | None = None,
) -> Tensor:
    """Share of every row's causal attention that lies in kept blocks: float64 [B, Hq, Sq].

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D]; block_mask int32 [B|1, Hq|1, n_query_blocks, n_words];
    ``scale`` None is 1/sqrt(D); key_segment int32 [B|1, Sk], a negative id is padding. A row without visible
    keys keeps 1. Source: arXiv 2406.15486, section 3.
    """
    shares = []
    for rows, weights, visible in _probabilities(query, key, scale, q_offset, key_segment):
        kept = reference.kept_entries(block_mask, rows, key.shape[2], block_q, block_k)
        share = weights.masked_fill(~kept, 0.0).sum(-1)
        shares.append(torch.where(visible.any(-1), share, 1.0))
    return torch.cat(shares, -1)


def cra(
    query: Tensor,
    key: Tensor,
    block_mask: Tensor,
    *,
    block_q: int = 128,
    block_k: int = 128,
    scale: float | None = None,
    q_offset: int = 0,
    key_segment: Tensor | None = None,
) -> Tensor:
    """Cumulative residual attention: the minimum over queries of the kept probability, float64 [B, Hq].

    Arguments as in :func:`kept_probability`. Source: arXiv 2406.15486, section 3.
    """
    return kept_probability(
        query,
        key,
        block_mask,
        block_q=block_q,
        block_k=block_k,
        scale=scale,
        q_offset=q_offset,
        key_segment=key_segment,
    ).amin(-1)


def sparsity_degree(
    query: Tensor,
    key: Tensor,
    alpha: float,
    *,
    scale: float | None = None,
    q_offset: int = 0,
    key_segment: Tensor | None = None,
) -> Tensor:
    """SD(alpha): largest share of causal KV entries that can go with CRA >= alpha, float64 [B, Hq].

    Token level: every row keeps its largest entries, the fewest whose probability reaches ``alpha`` in [0,
    1]; alpha 1 keeps every visible entry. Other arguments as in :func:`kept_probability`. Raises ValueError
    for an alpha out of range. Source: arXiv 2406.15486, section 3.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"sparsity_degree: 'alpha' must be in [0, 1], got {alpha!r}")
    kept = torch.zeros(query.shape[:2], dtype=torch.float64, device=query.device)
    total = torch.zeros_like(kept)
    for _, weights, visible in _probabilities(query, key, scale, q_offset, key_segment):
        visible = visible.expand_as(weights)
        total += visible.sum((-1, -2))
        if alpha == 1.0:
            kept += visible.sum((-1, -2))
            continue
        ordered = weights.sort(-1, descending=True).values
        before = ordered.cumsum(-1) - ordered
        kept += ((before < alpha) & (ordered > 0)).sum((-1, -2))
    return torch.where(total > 0, 1.0 - kept / total.clamp(min=1.0), 0.0)


def _probabilities(
    query: Tensor, key: Tensor, scale: float | None, q_offset: int, key_segment: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Row indices, causal attention [B, Hq, rows, Sk], visibility [B|1, 1, rows, Sk]; some rows at a time."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    keys = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(-1, -2)
    rows = torch.arange(query.shape[2], device=query.device)
    for part in rows.split(reference.ROWS_AT_A_TIME):
        visible = reference.visible_entries(
            part, key.shape[2], causal=True, q_offset=q_offset, key_segment=key_segment
        )[:, None]
        scores = (scale * query[:, :, part].double() @ keys).masked_fill(~visible, -torch.inf)
        weights = scores.softmax(-1).masked_fill(~visible, 0.0)
        yield part, weights, visible
