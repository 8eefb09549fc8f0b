"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.blocks import unpack_bits
from ..shared.eager import grouped_product, row_chunks, scaled_scores
from ..shared.shapes import ceil_div
from ..shared.visibility import allowed_entries


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
    batch, heads, q_len, _ = query.shape
    k_len, v_dim = value.shape[2:]
    out = query.new_empty((batch, q_len, heads, v_dim)).transpose(1, 2)
    lse = query.new_empty((batch, heads, q_len), dtype=torch.float32)
    # 0 * NaN is NaN: values that are not finite are taken out of the product and marked in the rows that see
    # them.
    finite = value.isfinite()
    clean = torch.where(finite, value, 0).float()
    poisoned = ~finite.all(-1).repeat_interleave(heads // value.shape[1], 1)  # [B, Hq, Sk]
    for part in row_chunks(query, key, q_len, block_q):
        rows = torch.arange(part.start, part.stop, device=query.device)
        allowed = allowed_entries(rows + q_offset, k_len, causal, window)
        if key_segment is not None or query_segment is not None:
            allowed = allowed & _same_segment(query_segment, key_segment, part, k_len)
        words = block_mask[:, :, part.start // block_q : ceil_div(part.stop, block_q)]
        kept = unpack_bits(words, ceil_div(k_len, block_k))
        kept = kept.repeat_interleave(block_q, 2)[:, :, : rows.numel()]
        allowed = allowed & kept.repeat_interleave(block_k, 3)[..., :k_len]  # [B|1, Hq|1, rows, Sk]
        scores = torch.where(allowed, scaled_scores(query[:, :, part], key, scale), -torch.inf)
        row_lse = scores.logsumexp(-1)
        weights = torch.where(allowed, torch.exp(scores - row_lse[..., None]), 0)
        result = grouped_product(weights, clean)
        sees_poison = (allowed & poisoned[:, :, None]).any(-1, keepdim=True)
        out[:, :, part] = torch.where(sees_poison, torch.nan, result).to(out.dtype)
        lse[:, :, part] = row_lse
    return out, lse


def _same_segment(
    query_segment: Tensor | None, key_segment: Tensor | None, part: slice, k_len: int
) -> Tensor:
    """Bool [B|1, 1, rows|1, Sk|1]: the key is valid and of the row's segment."""
    if key_segment is None:
        assert query_segment is not None
        return (query_segment[:, part] == 0)[:, None, :, None]
    keys = key_segment[:, None, None]
    if query_segment is None:
        return keys == 0
    return (keys >= 0) & (keys == query_segment[:, None, part, None])
