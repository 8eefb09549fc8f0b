"""Checks of the ops' arguments: an error names the argument, what came, what is allowed.

Sizes may be symbolic: comparisons are ordered so that sizes that are equal by construction add no guard, and
values that only a run knows (offsets, chunk counts) are checked when they are plain ints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .record import Attending, Segmented
from .shapes import ceil_div, n_words

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK_SIZES = (16, 32, 64, 128)


def check_qkv(op: str, query: Tensor, key: Tensor, value: Tensor | None = None) -> None:
    """query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]: one dtype, one device."""
    if query.dim() != 4 or query.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"{op}: 'query' must be a [B, Hq, Sq, D] tensor of float32, bfloat16 or float16, "
            f"got {_describe(query)}"
        )
    _check_like(op, "key", key, query, "[B, Hkv, Sk, D]")
    if key.shape[0] != query.shape[0] or key.shape[3] != query.shape[3]:
        raise ValueError(
            f"{op}: 'key' must have query's batch and head_dim ({query.shape[0]}, {query.shape[3]}), "
            f"got {_describe(key)}"
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] != 0:
        raise ValueError(
            f"{op}: 'key' must have a number of heads that divides query's ({query.shape[1]}), "
            f"got {key.shape[1]}"
        )
    if value is None:
        return
    _check_like(op, "value", value, query, "[B, Hkv, Sk, Dv]")
    if any(value.shape[i] != key.shape[i] for i in range(3)):
        raise ValueError(
            f"{op}: 'value' must have key's batch, heads and length {tuple(key.shape[:3])}, "
            f"got {_describe(value)}"
        )


def check_segment(
    op: str, name: str, segment: Tensor | None, batch: int | None, length: int, like: Tensor
) -> None:
    """A segment tensor is int32 [B|1, length] on ``like``'s device."""
    if segment is None:
        return
    if segment.dim() != 2 or segment.dtype != torch.int32:
        raise ValueError(
            f"{op}: {name!r} must be an int32 [B|1, {length}] tensor or None, got {_describe(segment)}"
        )
    _check_device(op, name, segment, like)
    _check_size(op, name, segment, 1, (length,))
    if batch is not None:
        _check_size(op, name, segment, 0, (1, batch))


def check_attention(op: str, a: Attending) -> None:
    """Queries, keys and values, blocks, and an index of them."""
    check_qkv(op, a.query, a.key, a.value)
    check_block_size(op, block_q=a.block_q, block_k=a.block_k)
    check_block_mask(op, a.block_mask, a.query, a.key.shape[2], a.block_q, a.block_k)


def check_segments(op: str, a: Segmented) -> None:
    """The segments of a record's query rows and keys."""
    batch = a.query.shape[0]
    check_segment(op, "query_segment", a.query_segment, batch, a.query.shape[2], a.query)
    check_segment(op, "key_segment", a.key_segment, batch, a.key.shape[2], a.query)


def check_sinks(op: str, sinks: Tensor | None, query: Tensor) -> None:
    """Sinks are float32 [Hq] or [1] on query's device."""
    if sinks is None:
        return
    heads = query.shape[1]
    if sinks.dim() != 1 or sinks.dtype != torch.float32:
        raise ValueError(
            f"{op}: 'sinks' must be a float32 [{heads}] or [1] tensor or None, got {_describe(sinks)}"
        )
    _check_device(op, "sinks", sinks, query)
    _check_size(op, "sinks", sinks, 0, (heads, 1))


def check_block_mask(
    op: str, block_mask: Tensor, query: Tensor, kv_len: int, block_q: int, block_k: int
) -> None:
    """block_mask is int32 [B|1, Hq|1, ceil(Sq / block_q), n_words(ceil(Sk / block_k))]."""
    if block_mask.dim() != 4 or block_mask.dtype != torch.int32:
        raise ValueError(
            f"{op}: 'block_mask' must be an int32 [B|1, Hq|1, n_query_blocks, n_words] tensor, "
            f"got {_describe(block_mask)}"
        )
    _check_device(op, "block_mask", block_mask, query)
    _check_size(op, "block_mask", block_mask, 0, (1, query.shape[0]))
    _check_size(op, "block_mask", block_mask, 1, (1, query.shape[1]))
    _check_size(op, "block_mask", block_mask, 2, (ceil_div(query.shape[2], block_q),))
    _check_size(op, "block_mask", block_mask, 3, (n_words(ceil_div(kv_len, block_k)),))


def check_float32(op: str, name: str, tensor: Tensor, shape: Sequence[int], query: Tensor) -> None:
    """A float32 tensor of this shape on query's device."""
    if tensor.dim() != len(shape) or tensor.dtype != torch.float32:
        raise ValueError(
            f"{op}: {name!r} must be a float32 tensor of {len(shape)} dimensions, got {_describe(tensor)}"
        )
    _check_device(op, name, tensor, query)
    for dim, size in enumerate(shape):
        _check_size(op, name, tensor, dim, (size,))


def check_scores(op: str, column_scores: Tensor, slash_scores: Tensor, kv_len: int, block_k: int) -> None:
    """Both scores are float32 [B, Hq, ceil(Sk / block_k)]."""
    for name, scores in (("column_scores", column_scores), ("slash_scores", slash_scores)):
        if scores.dim() != 3 or scores.dtype != torch.float32:
            raise ValueError(
                f"{op}: {name!r} must be a float32 [B, Hq, n_key_blocks] tensor, got {_describe(scores)}"
            )
        _check_size(op, name, scores, 2, (ceil_div(kv_len, block_k),))
    for dim in (0, 1):
        _check_size(op, "slash_scores", slash_scores, dim, (column_scores.shape[dim],))
    _check_device(op, "slash_scores", slash_scores, column_scores)


def check_representatives(
    op: str, representatives: Tensor, log_weights: Tensor, spreads: Tensor, key: Tensor, block_k: int
) -> None:
    """[B, Hkv, members, n_key_blocks, D] in key's dtype, and two float32 without the last dimension."""
    if representatives.dim() != 5 or representatives.dtype != key.dtype:
        raise ValueError(
            f"{op}: 'representatives' must be a [B, Hkv, members, n_key_blocks, D] tensor of key's dtype "
            f"{key.dtype}, got {_describe(representatives)}"
        )
    _check_device(op, "representatives", representatives, key)
    batch, heads, kv_len, head_dim = key.shape
    shape = (batch, heads, representatives.shape[2], ceil_div(kv_len, block_k))
    for dim, size in ((0, batch), (1, heads), (3, shape[3]), (4, head_dim)):
        _check_size(op, "representatives", representatives, dim, (size,))
    for name, tensor in (("log_weights", log_weights), ("spreads", spreads)):
        if tensor.dim() != 4 or tensor.dtype != torch.float32:
            raise ValueError(
                f"{op}: {name!r} must be a float32 [B, Hkv, members, n_key_blocks] tensor, "
                f"got {_describe(tensor)}"
            )
        _check_device(op, name, tensor, key)
        for dim, size in enumerate(shape):
            _check_size(op, name, tensor, dim, (size,))


def check_block_size(op: str, **sizes: int) -> None:
    """Block sizes are one of BLOCK_SIZES."""
    for name, size in sizes.items():
        if size not in BLOCK_SIZES:
            allowed = ", ".join(map(str, BLOCK_SIZES))
            raise ValueError(f"{op}: {name!r} must be one of {allowed}, got {size!r}")


def check_at_least(op: str, bound: int, **values: int | float) -> None:
    """Numbers that must not be smaller than ``bound``; symbolic ones are left to the run."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and not value >= bound:
            raise ValueError(f"{op}: {name!r} must be >= {bound}, got {value!r}")


def check_power_of_two(op: str, **values: int) -> None:
    """Counts that divide every block size."""
    for name, value in values.items():
        if value < 1 or value & (value - 1):
            raise ValueError(f"{op}: {name!r} must be a power of two, got {value!r}")


def _check_like(op: str, name: str, tensor: Tensor, query: Tensor, shape: str) -> None:
    if tensor.dim() != 4 or tensor.dtype != query.dtype:
        raise ValueError(
            f"{op}: {name!r} must be a {shape} tensor of query's dtype {query.dtype}, got {_describe(tensor)}"
        )
    _check_device(op, name, tensor, query)


def _check_device(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(
            f"{op}: {name!r} must be on {like.device} like the other tensors, got {tensor.device}"
        )


def _check_size(op: str, name: str, tensor: Tensor, dim: int, allowed: Sequence[int]) -> None:
    if not any(tensor.shape[dim] == size for size in allowed):
        choices = " or ".join(str(size) for size in dict.fromkeys(allowed))
        raise ValueError(
            f"{op}: {name!r} must have size {choices} in dimension {dim}, got shape {tuple(tensor.shape)}"
        )


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
