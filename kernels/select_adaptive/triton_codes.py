"""Representatives as bytes, which a matrix unit multiplies twice as fast (``reference.byte_product``)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rounded(x):
    """To the nearest integer, halves to even, of numbers below 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def code_factor(largest):
    """What brings numbers of at most ``largest`` to 127."""
    return tl.where(largest > 0, 127.0 / tl.where(largest > 0, largest, 1.0), 0.0)


@triton.jit
def _write_codes(
    representatives,
    log_weights,
    codes,  # int8 [B * Hkv, members, n_padded, CODE_DIM]
    units,  # fp32 [B * Hkv, n_padded]: what a block's bytes are multiples of
    n,
    n_padded,
    members,
    HEAD_DIM: tl.constexpr,
    CODE_DIM: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """The representatives of a block, less the head's common key: the mean of its first block."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    dim, member = tl.arange(0, CODE_DIM), tl.arange(0, MEMBERS)
    place = head * members * n + member * n + block
    exists = (member < members) & (block < n)
    exists = exists & (tl.load(log_weights + place, mask=exists, other=float("-inf")) > float("-inf"))
    loaded = exists[:, None] & (dim < HEAD_DIM)[None, :]
    common = tl.load(representatives + head * members * n * HEAD_DIM + dim, mask=dim < HEAD_DIM, other=0.0)
    own = tl.load(representatives + place[:, None] * HEAD_DIM + dim[None, :], mask=loaded, other=0.0)
    difference = tl.where(loaded, own.to(tl.float32) - common.to(tl.float32)[None, :], 0.0)
    largest = tl.max(tl.max(tl.abs(difference), 1), 0)
    code = rounded(difference * code_factor(largest)).to(tl.int8)
    to = codes + (head * members * n_padded + member[:, None] * n_padded + block) * CODE_DIM + dim[None, :]
    tl.store(to, code, mask=(member < members)[:, None])
    tl.store(units + head * n_padded + block, largest / 127.0)


def codes_of(
    representatives: Tensor, log_weights: Tensor, n_padded: int, code_dim: int
) -> tuple[Tensor, Tensor]:
    """int8 [B * Hkv, members, n_padded, code_dim], and fp32 [B * Hkv, n_padded]: what they are multiples of.

    Of contiguous representatives [B, Hkv, members, n_key_blocks, D] and their log_weights. One launch.
    """
    batch, kv_heads, members, n, head_dim = representatives.shape
    codes = representatives.new_empty((batch * kv_heads, members, n_padded, code_dim), dtype=torch.int8)
    units = representatives.new_empty((batch * kv_heads, n_padded), dtype=torch.float32)
    _write_codes[(n_padded, batch * kv_heads)](
        representatives,
        log_weights,
        codes,
        units,
        n,
        n_padded,
        members,
        HEAD_DIM=head_dim,
        CODE_DIM=code_dim,
        MEMBERS=triton.next_power_of_2(members),
        num_warps=1,
    )
    return codes, units
