"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.blocks import unpack_bits
from ..shared.eager import grouped_product, row_chunks, scaled_scores
from ..shared.grid import Grid
from ..shared.shapes import ceil_div
from ..shared.visibility import allowed_entries
from .op import Arguments, new_outputs


def block_sparse_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    query, key, value, block_q, block_k = a.query, a.key, a.value, a.block_q, a.block_k
    q_len, kv_len, group = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    out, lse = new_outputs(a)
    grid = Grid.of(a)
    # 0 * NaN is NaN: values that are not finite are taken out of the product and marked in the rows that see
    # them.
    finite = value.isfinite()
    clean = torch.where(finite, value, 0).float()
    poisoned = ~finite.all(-1).repeat_interleave(group, 1)  # [B, Hq, Sk]
    for part in row_chunks(query, key, q_len, block_q):
        rows = torch.arange(part.start, part.stop, device=query.device)
        allowed = allowed_entries(grid.positions(rows), kv_len, a.causal, a.window)
        if a.key_segment is not None or a.query_segment is not None:
            allowed = allowed & _same_segment(a.query_segment, a.key_segment, part)
        words = a.block_mask[:, :, part.start // block_q : ceil_div(part.stop, block_q)]
        kept = unpack_bits(words, ceil_div(kv_len, block_k))
        kept = kept.repeat_interleave(block_q, 2)[:, :, : rows.numel()]
        allowed = allowed & kept.repeat_interleave(block_k, 3)[..., :kv_len]  # [B|1, Hq|1, rows, Sk]
        scores = torch.where(allowed, scaled_scores(query[:, :, part], key, a.scale), -torch.inf)
        row_lse = scores.logsumexp(-1)
        total = row_lse if a.sinks is None else torch.logaddexp(row_lse, a.sinks[:, None])
        weights = torch.where(allowed, torch.exp(scores - total[..., None]), 0)
        result = grouped_product(weights, clean)
        sees_poison = (allowed & poisoned[:, :, None]).any(-1, keepdim=True)
        out[:, :, part] = torch.where(sees_poison, torch.nan, result).to(out.dtype)
        lse[:, :, part] = row_lse
    return out, lse


def _same_segment(query_segment: Tensor | None, key_segment: Tensor | None, part: slice) -> Tensor:
    """Bool [B|1, 1, rows|1, Sk|1]: the key is valid and of the row's segment."""
    if key_segment is None:
        assert query_segment is not None
        return (query_segment[:, part] == 0)[:, None, :, None]
    keys = key_segment[:, None, None]
    if query_segment is None:
        return keys == 0
    return (keys >= 0) & (keys == query_segment[:, None, part, None])
