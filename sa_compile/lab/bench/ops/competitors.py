"""What the block-sparse op is compared with, as functions that take nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

DENSE = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "fa2": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def dense_attention(name: str, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """Dense causal SDPA pinned to one backend: "cudnn", "fa2" (FlashAttention-2) or "efficient"; the last
    knows no groups of heads, and has its keys and values repeated before."""
    if name == "efficient":
        group = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))

    def run() -> Tensor:
        with sdpa_kernel(DENSE[name]):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )

    return run


def flex_attention(query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> Callable[[], Tensor]:
    """FlexAttention's compiled kernel over the same blocks: the diagonal masked, the rest full.

    ``kept``: bool [1, H, n, n], 128 x 128 blocks.
    """
    from torch.nn.attention.flex_attention import BlockMask
    from torch.nn.attention.flex_attention import flex_attention as attend

    full = kept.clone()
    full.diagonal(dim1=-2, dim2=-1).fill_(False)

    def lists(chosen: Tensor) -> tuple[Tensor, Tensor]:
        return chosen.sum(-1).int(), torch.argsort(chosen.int(), dim=-1, descending=True, stable=True).int()

    torch._dynamo.reset()  # a graph for every shape: more than its limit, if all are kept
    length = query.shape[2]
    mask = BlockMask.from_kv_blocks(
        *lists(kept & ~full),
        *lists(full),
        BLOCK_SIZE=(128, 128),
        mask_mod=_causal,
        seq_lengths=(length, length),
        compute_q_blocks=False,
    )
    compiled = torch.compile(attend, dynamic=False, fullgraph=True)
    return lambda: compiled(query, key, value, block_mask=mask, enable_gqa=True)


# At the module's level: a new function for every mask would be a new graph for torch.compile.
def _causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k
