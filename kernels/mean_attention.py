"""The op ``block_mean_attention``, on every device: one kernel, or attention and means added to it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import cuda_library
from .block_mean_attention import eager


def block_mean_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor]:
    """The op ``block_mean_attention`` (see ``ops``)."""
    if query.is_cuda:
        whole = cuda_library.whole_mean_attention(query, value, scale, block_q, block_k)
        if whole is not None:
            return whole(query, key, value, block_mask, key_segment, scale, q_offset, block_q, block_k)
    attend = torch.ops.sampleattn.block_sparse_attention.default
    sizes = (block_q, block_k)
    out, lse = attend(query, key, value, block_mask, None, key_segment, scale, True, q_offset, 0, *sizes)
    # In place, into outputs that nobody else has yet: at 1M tokens a second output would take gigabytes.
    add = cuda_library.add_block_means_ if query.is_cuda else eager.add_block_means_
    add(out, lse, query, key, value, block_mask, key_segment, scale, q_offset, *sizes)
    return out, lse
