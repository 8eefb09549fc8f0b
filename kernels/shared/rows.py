"""Which query rows are a prompt's own: where it ends, what a query block holds of it, what is sampled.

A prompt may be padded on the right: it ends behind its last row whose own key is not padding. Its last rows
and the tails that are sampled count from there, for every batch entry. Computed on the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import ceil_div, row_positions


def row_ends(
    key_segment: Tensor | None,
    q_len: int,
    q_offset: int,
    device: torch.device,
    q_stride: int = 1,
    block_q: int = 1,
) -> Tensor:
    """int64 [B|1]: how many of the ``q_len`` query rows come before each prompt's end.

    ``key_segment`` int32 [B|1, Sk]: 0 for valid keys. A row whose position has no key is not padding; a
    prompt whose rows are all padding ends before the first.
    """
    if key_segment is None:
        return torch.full((1,), q_len, device=device)
    row, kv_len = torch.arange(q_len, device=device), key_segment.shape[1]
    position = row_positions(row, q_offset, q_stride, block_q)
    behind = torch.where((position >= 0) & (position < kv_len), position, kv_len)
    own = F.pad(key_segment, (0, 1))[:, behind]
    return F.pad(torch.where(own == 0, row + 1, 0), (1, 0)).amax(-1)


def block_stops(ends: Tensor, q_len: int, block_q: int) -> Tensor:
    """int64 [B|1, n_query_blocks]: the row behind the last one that each query block is chosen for.

    The block in which a prompt ends stops there; those behind it hold padding alone and stay whole.
    """
    first = torch.arange(ceil_div(q_len, block_q), device=ends.device) * block_q
    stop = (first + block_q).clamp(max=q_len)
    return torch.where(first < ends[:, None], torch.minimum(stop, ends[:, None]), stop)


def blocks_of_last_rows(ends: Tensor, q_len: int, block_q: int, last_rows: int) -> Tensor:
    """Bool [B|1, n_query_blocks]: the block holds one of the prompt's last ``last_rows`` rows."""
    stop = block_stops(ends, q_len, block_q)
    return (stop <= ends[:, None]) & (stop > ends[:, None] - last_rows)


def sampled_rows(ends: Tensor, chunk_n: int, sample_rows: int) -> tuple[Tensor, Tensor]:
    """The last ``sample_rows`` rows of each of a prompt's ``chunk_n`` equal chunks (arXiv 2406.15486v3,
    section 3).

    Returns int64 ``rows`` [B|1, chunk_n * sample_rows] and bool ``valid`` of the same shape; a chunk shorter
    than ``sample_rows`` fills the rest with invalid entries (row 0), so that the shapes do not depend on the
    data.
    """
    edges = torch.arange(chunk_n + 1, device=ends.device) * ends[:, None] // chunk_n
    begin, end = edges[:, :-1, None], edges[:, 1:, None]
    rows = end - sample_rows + torch.arange(sample_rows, device=ends.device)
    valid = rows >= begin
    return torch.where(valid, rows, 0).flatten(1), valid.flatten(1)
