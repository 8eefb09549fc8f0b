"""What the PyTorch implementations share: scores a few rows at a time, and the attention of sampled rows.

Queries are processed in chunks of rows, so that the scores held at a time stay below ``SCORE_BYTES``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .record import CausalRows
from .shapes import blocks_of_keys
from .visibility import allowed_entries

SCORE_BYTES = 128 << 20


def row_chunks(query: Tensor, key: Tensor, n_rows: int, multiple: int) -> list[slice]:
    row_bytes = 4 * query.shape[0] * query.shape[1] * max(key.shape[2], 1)
    step = max(SCORE_BYTES // max(row_bytes, 1) // multiple, 1) * multiple
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def scaled_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Scaled fp32 scores [B, Hq, rows, Sk], without repeating the keys."""
    return grouped_product(query.float() * scale, key.float().transpose(-1, -2))


def grouped_product(left: Tensor, right: Tensor) -> Tensor:
    """left [B, Hq, M, K] @ right [B, Hkv, K, N]: each KV head serves Hq // Hkv consecutive query heads."""
    batch, heads, rows, _ = left.shape
    kv_heads = right.shape[1]
    grouped = left.reshape(batch, kv_heads, heads // kv_heads * rows, left.shape[3])
    return (grouped @ right).reshape(batch, heads, rows, right.shape[3])


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """[B, H, R, C]: of x [B|1, H, S, C] each batch entry's own rows, int64 [B|1, R]."""
    batch, (heads, _, columns) = max(x.shape[0], rows.shape[0]), x.shape[1:]
    index = rows[:, None, :, None].expand(batch, heads, -1, columns)
    return x.expand(batch, -1, -1, -1).gather(2, index)


def block_mass(a: CausalRows, block_k: int, rows: Tensor, valid: Tensor) -> Tensor:
    """Softmax mass of every key block, fp32 [B, Hq, R, n_key_blocks]; 0 for invalid rows.

    ``rows`` int64 and ``valid`` bool [B|1, R].
    """
    weights, _ = row_weights(a, rows, rows + a.q_offset, valid)
    mass = blocks_of_keys(weights, block_k).sum(-1)
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0, mass / torch.where(total > 0, total, 1), 0)


def with_sinks(log_sum: Tensor, sinks: Tensor | None) -> Tensor:
    """Rows' log-sum-exps over keys, [B, Hq, R], and their heads' sinks [Hq] or [1], if any.

    -inf stays: a row that sees no key gives none a share.
    """
    if sinks is None:
        return log_sum
    both = torch.logaddexp(log_sum, sinks[:, None])
    return torch.where(log_sum == -torch.inf, log_sum, both)


def row_weights(a: CausalRows, rows: Tensor, position: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Exponentials of the rows' scores less their largest, fp32 [B, Hq, R, Sk], 0 where nothing is seen; and
    the largest, [B, Hq, R, 1]."""
    kv_len = a.key.shape[2]
    allowed = (allowed_entries(position, kv_len, True, 0) & valid[..., None])[:, None]
    if a.key_segment is not None:
        allowed = allowed & (a.key_segment == 0)[:, None, None]
    scores = torch.where(allowed, scaled_scores(rows_of(a.query, rows), a.key, a.scale), -torch.inf)
    row_max = (
        scores.amax(-1, keepdim=True) if kv_len else scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    )
    return torch.where(allowed, torch.exp(scores - row_max), 0), row_max
