"""Rows of a query block in Triton: the keys that they score exactly, and their numbers as bytes."""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.triton import floor_div
from .triton_codes import code_factor, rounded

COLUMNS = 128  # of a product of bytes: members of some key blocks
MEMBERS_AT_ONCE = 16
SCRATCH_BYTES = 256 << 20
# Keys that are scored exactly at a time, and stages: the first that the device's shared memory holds.
TILES = ((64, 3), (32, 2), (16, 1))
REGISTERS = 128  # a thread: two thread blocks of 256 share a multiprocessor, and hide each other's latency


@triton.jit
def own_blocks(first_position, last_position, whole, n_key_blocks, BLOCK_K: tl.constexpr):
    """The first key block that a query block's rows score exactly, and the one behind the last.

    Of a query block that keeps all blocks, ``whole``, nothing is scored: 0 and 0.
    """
    low, high = floor_div(first_position, BLOCK_K), floor_div(last_position, BLOCK_K)
    stop = tl.where(whole, 0, tl.minimum(high + 1, n_key_blocks))
    return tl.minimum(tl.maximum(low, 0), stop), stop


@triton.jit
def add_scores(highest, total, scores, scale_log2):
    """Adds scores [rows, n] to the rows' highest, unscaled, and to their totals relative to it."""
    higher = tl.maximum(highest, tl.max(scores, 1))
    offset = tl.where(higher == float("-inf"), 0.0, higher) * scale_log2
    added = tl.sum(tl.exp2(scores * scale_log2 - offset[:, None]), 1)
    return higher, total * tl.exp2(highest * scale_log2 - offset) + added


@triton.jit
def exact_keys(
    q, keys, key_segment, highest, total, start, last, dim, k_row, scale_log2,
    HEAD_DIM: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    HAS_SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the exact scores of the keys from ``start`` on to the rows' highest, unscaled, and totals.

    ``last``: of each row the last key that it sees.
    """
    index = start + tl.arange(0, TILE_KEYS)
    exists = index <= tl.max(last, 0)
    k = tl.load(
        keys + index[None, :].to(tl.int64) * k_row + dim[:, None],
        mask=exists[None, :] & (dim < HEAD_DIM)[:, None],
        other=0.0,
    )
    scores = tl.dot(q, k, input_precision=PRECISION)
    scores = tl.where(index[None, :] <= last[:, None], scores, float("-inf"))
    if HAS_SEGMENT:
        segment = tl.load(key_segment + index, mask=exists, other=-1)
        scores = tl.where((segment == 0)[None, :], scores, float("-inf"))
    return add_scores(highest, total, scores, scale_log2)


@triton.jit
def store_row_codes(to, numbers, largest, dim, TILE_DIM: tl.constexpr, CODE_DIM: tl.constexpr):
    """Writes rows' numbers [rows, TILE_DIM], of which it is told the largest of each, as bytes.

    ``to`` [rows, 1]: where each row's CODE_DIM begin. They go through memory, behind a barrier: an operand
    that was loaded is multiplied where it lies, and takes no registers.
    """
    tl.store(to + dim[None, :], rounded(numbers * code_factor(largest)[:, None]).to(tl.int8))
    if TILE_DIM < CODE_DIM:
        behind = TILE_DIM + tl.arange(0, CODE_DIM - TILE_DIM)
        tl.store(to + behind[None, :], tl.zeros((largest.shape[0], CODE_DIM - TILE_DIM), tl.int8))


def tile_that_fits(dim: int, block_q: int, shared: int) -> tuple[int, int]:
    """An entry of TILES for rows of ``dim`` columns: first with keys of 16 bits, then with bytes."""

    def size(keys: int, stages: int) -> int:
        return dim * max(2 * (block_q + keys * stages), block_q + COLUMNS * stages) + 1024

    return next((tile for tile in TILES if size(*tile) <= shared), TILES[-1])
