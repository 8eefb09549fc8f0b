"""Index arithmetic that every implementation of the ops shares; works on ints and on SymInts."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

WORD_BITS = 32
LEAST_WORDS = 2
Rows = TypeVar("Rows", int, Tensor)


def ceil_div(a: int, b: int) -> int:
    """ceil(a / b) for b > 0, without a branch on ``a`` (which may be symbolic)."""
    return (a + b - 1) // b


def n_words(n_key_blocks: int) -> int:
    """int32 words of a row of a block_mask: one bit for each of ``n_key_blocks``, and no row of one word.

    torch.compile makes a graph of its own for every size that is 1: so short prompts take the same graph as
    long ones.
    """
    return torch.sym_max(LEAST_WORDS, ceil_div(n_key_blocks, WORD_BITS))


def row_positions(rows: Rows, q_offset: int, q_stride: int, block_q: int) -> Rows:
    """Where rows stand: query blocks are contiguous runs, and begin ``q_stride`` times ``block_q`` apart."""
    return rows + q_offset + rows // block_q * ((q_stride - 1) * block_q)


def query_block_positions(
    q_len: int, q_offset: int, block_q: int, device: torch.device, q_stride: int = 1
) -> tuple[Tensor, Tensor]:
    """Positions of the first and last row of every query block: two int64 tensors [ceil(q_len / block_q)]."""
    first = torch.arange(ceil_div(q_len, block_q), device=device) * block_q
    last = (first + block_q).clamp(max=q_len) - 1
    where = (q_offset, q_stride, block_q)
    return row_positions(first, *where), row_positions(last, *where)


def blocks_of_keys(x: Tensor, block_k: int) -> Tensor:
    """[..., Sk] to [..., n_key_blocks, block_k], padded with zeros."""
    n_key_blocks = ceil_div(x.shape[-1], block_k)
    padded = torch.nn.functional.pad(x, (0, n_key_blocks * block_k - x.shape[-1]))
    return padded.unflatten(-1, (n_key_blocks, block_k))


def scale_or_default(scale: float | None, query: Tensor) -> float:
    """What scores are multiplied by: 1/sqrt(D) unless said otherwise."""
    return query.shape[-1] ** -0.5 if scale is None else scale
