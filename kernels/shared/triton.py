"""What the Triton kernels share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows import row_ends
from .shapes import WORD_BITS, ceil_div

LOG2_E = 1.4426950408889634


@triton.jit
def floor_div(a, b: tl.constexpr):
    """a // b rounded towards minus infinity, for b > 0 (Triton's own rounds towards zero)."""
    return tl.where(a >= 0, a // b, -((b - 1 - a) // b))


@triton.jit
def row_end(ends, batch, ends_batch, q_len, HAS_SEGMENT: tl.constexpr):
    """How many query rows come before the prompt's end; ``ends``: those of :func:`ends_of_rows`."""
    return tl.load(ends + batch * ends_batch) if HAS_SEGMENT else q_len


@triton.jit
def block_stop(first, end, q_len, BLOCK_Q: tl.constexpr):
    """The row behind the last one that the query block of row ``first`` is chosen for (see ``rows``)."""
    stop = tl.minimum(first + BLOCK_Q, q_len)
    return tl.where(first < end, tl.minimum(stop, end), stop)


@triton.jit
def holds_last_row(stop, end, last_rows):
    """Does the query block hold one of the prompt's last rows?"""
    return (stop <= end) & (stop > end - last_rows)


@triton.jit
def sampled_row(index, end, chunk_n, sample_rows):
    """Query row of a sample, and whether it exists: the last rows of each of a prompt's equal chunks."""
    chunk = (index // sample_rows).to(tl.int64)
    begin = chunk * end // chunk_n
    stop = (chunk + 1) * end // chunk_n
    row = stop - sample_rows + index % sample_rows
    return row.to(tl.int32), (row >= begin) & (chunk < chunk_n)


@triton.jit
def _find_visible(
    key_segment,
    visible,
    first_visible,
    segment_batch,
    kv_len,
    n_key_blocks,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    index = block[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    segment = tl.load(key_segment + batch * segment_batch + index, mask=index < kv_len, other=-1)
    seen = tl.max((segment == 0).to(tl.int32), 1)
    tl.store(visible + batch * n_key_blocks + block, seen.to(tl.int8), mask=block < n_key_blocks)
    tl.atomic_min(first_visible + batch, tl.min(tl.where(seen == 1, block, n_key_blocks), 0))


def visible_and_sinks(
    key_segment: Tensor | None, n_key_blocks: int, block_k: int, keep_sink: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """int8 [B|1, n_key_blocks]: the block holds a valid key; int32 [B|1]: the first such, if it is forced.

    If not, or if there is none, ``n_key_blocks``.
    """
    if key_segment is None:
        visible = torch.ones((1, n_key_blocks), dtype=torch.int8, device=device)
        return visible, torch.full((1,), 0 if keep_sink else n_key_blocks, dtype=torch.int32, device=device)
    batch, kv_len = key_segment.shape
    visible = key_segment.new_empty((batch, n_key_blocks), dtype=torch.int8)
    sinks = key_segment.new_full((batch,), n_key_blocks, dtype=torch.int32)
    _find_visible[(ceil_div(n_key_blocks, WORD_BITS), batch)](
        key_segment,
        visible,
        sinks,
        key_segment.stride(0),
        kv_len,
        n_key_blocks,
        TILE=WORD_BITS,
        BLOCK_K=block_k,
    )
    return visible, sinks if keep_sink else torch.full_like(sinks, n_key_blocks)


def ends_of_rows(
    key_segment: Tensor | None, q_len: int, q_offset: int, q_stride: int = 1, block_q: int = 1
) -> Tensor | None:
    """int32 [B|1]: ``rows.row_ends`` where there is padding."""
    if key_segment is None:
        return None
    return row_ends(key_segment, q_len, q_offset, key_segment.device, q_stride, block_q).int()


def groups_that_fit(number: int, bytes_each: int, scratch: int) -> tuple[int, list[tuple[int, int]]]:
    """Blocks that a launch takes, such that they fit into ``scratch`` bytes, one at least; and its groups.

    Of ``number`` blocks; a group is its first block and how many it has.
    """
    most = min(max(scratch // max(bytes_each, 1), 1), number)
    return most, [(first, min(most, number - first)) for first in range(0, number, most)]


def tile_dim(head_dim: int) -> int:
    """Columns of a tile that holds a head: a power of two, 16 at least."""
    return max(16, triton.next_power_of_2(head_dim))


def batch_stride(tensor: Tensor | None) -> int:
    """Of a tensor that may have one batch entry for all, or be missing."""
    return 0 if tensor is None or tensor.shape[0] == 1 else tensor.stride(0)


def readable(tensor: Tensor) -> Tensor:
    """A tensor whose rows lie contiguous: itself, or a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
