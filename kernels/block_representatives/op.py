"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..choice import Call
from ..defaults import ADAPTIVE_LANDMARKS
from ..shared import checks
from ..shared.shapes import ceil_div

NAME = "block_representatives"
RETURNS = "(Tensor representatives, Tensor log_weights, Tensor spreads)"


class Arguments(NamedTuple):
    """See :func:`block_representatives`."""

    key: Tensor
    key_segment: Tensor | None
    block_k: int
    landmarks: int


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    checks.check_qkv(NAME, a.key, a.key)
    checks.check_block_size(NAME, block_k=a.block_k)
    checks.check_segment(NAME, "key_segment", a.key_segment, a.key.shape[0], a.key.shape[2], a.key)
    checks.check_at_least(NAME, 0, landmarks=a.landmarks)
    if a.landmarks > a.block_k:
        raise ValueError(f"{NAME}: 'landmarks' must be at most block_k ({a.block_k}), got {a.landmarks}")


def fake(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The results' shapes."""
    check(a)
    return new_results(a)


def new_results(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Representatives, log_weights and spreads that nobody has written yet."""
    batch, heads, kv_len, head_dim = a.key.shape
    shape = (batch, heads, 1 + a.landmarks, ceil_div(kv_len, a.block_k))
    log_weights, spreads = (a.key.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return a.key.new_empty((*shape, head_dim)), log_weights, spreads


def kernel(a: Arguments) -> Call:
    """What the kernel is chosen by on a GPU."""
    dims, members = (a.key.shape[-1], a.key.shape[-1]), 1 + a.landmarks
    return Call(NAME, a.key.device, a.key.dtype, dims, block_k=a.block_k, representatives=members)


def block_representatives(
    key: Tensor, *, key_segment: Tensor | None = None, block_k: int = 128, landmarks: int = ADAPTIVE_LANDMARKS
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys that stand for the key blocks: ``landmarks`` of each block's, and the mean of its others.

    The key of largest norm is the first landmark, then again that of which most is left, after half of what
    the others have in its direction has been taken away: large keys that point elsewhere than those before.
    A prompt's first key, which attention sinks make more of than its norm says, is the first of its block's.
    key is [B, Hkv, Sk, D] in float32, bfloat16 or float16. Returns ``representatives`` [B, Hkv, 1 +
    landmarks, n_key_blocks, D] in key's dtype, and float32 ``log_weights`` and ``spreads`` [B, Hkv, 1 +
    landmarks, n_key_blocks]: the logarithm of the number of keys that a representative stands for (the mean:
    the keys that are no landmarks; -inf: none), and the mean squared distance of these keys from it, per
    dimension. Source: docs/accuracy.md. Raises ValueError for arguments that do not fit.
    """
    a = Arguments(key, key_segment, block_k, landmarks)
    check(a)
    return torch.ops.sampleattn.block_representatives.default(*a)
