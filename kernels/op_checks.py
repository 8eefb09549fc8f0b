"""What each op asks of its arguments, built of ``checks``: the fakes and the calls in ``ops`` share it."""

from __future__ import annotations

from torch import Tensor

from .shared import checks


def check_block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    block_q: int,
    block_k: int,
) -> None:
    op, segments = "block_sparse_attention", (query_segment, key_segment)
    _check_attention(op, query, key, value, block_mask, *segments, block_q, block_k)


def check_block_mean_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    key_segment: Tensor | None,
    block_q: int,
    block_k: int,
) -> None:
    op, segments = "block_mean_attention", (None, key_segment)
    _check_attention(op, query, key, value, block_mask, *segments, block_q, block_k)


def _check_attention(
    op: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    block_q: int,
    block_k: int,
) -> None:
    checks.check_qkv(op, query, key, value)
    checks.check_block_size(op, block_q=block_q, block_k=block_k)
    checks.check_block_mask(op, block_mask, query, key.shape[2], block_q, block_k)
    checks.check_segment(op, "query_segment", query_segment, query.shape[0], query.shape[2], query)
    checks.check_segment(op, "key_segment", key_segment, query.shape[0], key.shape[2], query)
