"""What the Triton kernels share."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def floor_div(a, b: tl.constexpr):
    """a // b rounded towards minus infinity, for b > 0 (Triton's own rounds towards zero)."""
    return tl.where(a >= 0, a // b, -((b - 1 - a) // b))


@triton.jit
def sampled_row(index, q_len, chunk_n, sample_rows):
    """Query row of a sample, and whether it exists: the last rows of each of ``chunk_n`` equal chunks."""
    chunk = (index // sample_rows).to(tl.int64)
    begin = chunk * q_len // chunk_n
    end = (chunk + 1) * q_len // chunk_n
    row = end - sample_rows + index % sample_rows
    return row.to(tl.int32), (row >= begin) & (chunk < chunk_n)


def tile_dim(head_dim: int) -> int:
    """Columns of a tile that holds a head: a power of two, 16 at least."""
    return max(16, triton.next_power_of_2(head_dim))


def batch_stride(tensor: Tensor | None) -> int:
    """Of a tensor that may have one batch entry for all, or be missing."""
    return 0 if tensor is None or tensor.shape[0] == 1 else tensor.stride(0)
