"""Which tensors the ops take, and which they are fast on; asked of a graph's nodes and of tensors alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels import ops

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 512


def why_not_dtypes(dtypes: Iterable[torch.dtype]) -> str | None:
    """Why no op takes query, key and value of these dtypes; None if some does."""
    found = set(dtypes)
    if len(found) > 1:
        return "query, key and value have different dtypes: " + ", ".join(sorted(map(str, found)))
    (dtype,) = found
    if dtype not in SUPPORTED_DTYPES:
        return f"dtype {dtype}: supported are " + ", ".join(map(str, SUPPORTED_DTYPES))
    return None


def why_no_kernel(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    value_head_dim: int,
    config: SampleAttentionConfig,
) -> str | None:
    """Why the block-sparse op would not be fast on such tensors; None if it is."""
    for name, size in (("head_dim", head_dim), ("value head_dim", value_head_dim)):
        if size > MAX_HEAD_DIM:
            return f"{name} {size}: supported are sizes up to {MAX_HEAD_DIM}"
    if (
        ops.attention_kernel(device, dtype, head_dim, value_head_dim, config.block_q, config.block_k)
        == "pytorch"
    ):
        return f"no fast kernel for {dtype} and head_dim {head_dim} on {device.type}, see docs/kernels.md"
    return None
