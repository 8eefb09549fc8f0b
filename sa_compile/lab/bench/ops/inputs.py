"""Tensors and block masks that the benchmark runs on, and how much work a block mask is.

A ``block_mask`` is int32 [1, H, n_query_blocks, words] (``kernels.shared.blocks``). Query blocks have 128
rows; all attention is causal with as many queries as keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared.shapes import ceil_div

BLOCK = 128
_HALVINGS = 12  # of the interval in which the spread of scores is looked for
_WIDEST = 8.0  # its upper end: a few strips hold everything


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention layer; batch 1."""

    length: int
    head_dim: int = 128
    value_head_dim: int = 128
    heads: int = 32
    kv_heads: int = 8
    dtype: torch.dtype = torch.bfloat16


def qkv(shape: Shape, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Normal query [1, H, S, D], key [1, Hkv, S, D] and value [1, Hkv, S, Dv]."""
    random = torch.Generator(device).manual_seed(seed)

    def tensor(heads: int, dim: int) -> Tensor:
        size = (1, heads, shape.length, dim)
        return torch.randn(size, generator=random, device=device, dtype=shape.dtype)

    return (
        tensor(shape.heads, shape.head_dim),
        tensor(shape.kv_heads, shape.head_dim),
        tensor(shape.kv_heads, shape.value_head_dim),
    )


def random_blocks(heads: int, length: int, density: float, device: str, block_k: int = 128) -> Tensor:
    """Bool [1, H, n_q, n_k]: causal blocks with probability ``density``, block 0 and the diagonal always."""
    random = torch.Generator(device).manual_seed(0)
    causal, forced = _causal_and_forced(length, block_k, device)
    drawn = torch.rand(1, heads, *causal.shape, generator=random, device=device)
    return (drawn < density) & causal | forced


def blocks_as_many_as(kept: Tensor, length: int, block_k: int = 128, blocks_each: int = 1) -> Tensor:
    """Random blocks, in every row of every head ``blocks_each`` times as many as ``kept`` keeps, or all.

    ``kept`` bool [1, H, n_q, n_k]. Block 0 and the diagonal are among them. The kernel's work list is the
    same as for ``kept``; only where the blocks lie differs.
    """
    device = kept.device
    random = torch.Generator(device).manual_seed(1)
    causal, forced = _causal_and_forced(length, block_k, device)
    order = torch.rand(*kept.shape[:2], *causal.shape, generator=random, device=device)
    order = torch.where(forced, -1.0, torch.where(causal, order, 2.0))
    rank = order.argsort(-1).argsort(-1)
    return (rank < kept.sum(-1, keepdim=True) * blocks_each) & causal


def _causal_and_forced(length: int, block_k: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    first_row = torch.arange(ceil_div(length, BLOCK), device=device)[:, None] * BLOCK
    first_key = torch.arange(ceil_div(length, block_k), device=device) * block_k
    causal = first_key < (first_row + BLOCK)
    return causal, causal & ((first_key >= first_row) | (first_key == 0))


def spread_scores(
    scores: tuple[Tensor, Tensor], length: int, density: float, seed: int = 0
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Weights for column and slash scores with which selection, at its defaults, keeps ``density`` of the
    blocks.

    ``scores`` float32 [1, H, n_key_blocks] each, as is each weight: log-normal, of the spread that this
    density needs. Returns the weights, and the scores times the weights.
    """
    random = torch.Generator(scores[0].device).manual_seed(seed)
    normal = [torch.randn(x.shape, generator=random, device=x.device) for x in scores]

    def spread(width: float) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        column, slash = ((width * x).exp() for x in normal)
        return (column, slash), (scores[0] * column, scores[1] * slash)

    narrow, wide = 0.0, _WIDEST
    for _ in range(_HALVINGS):
        middle = (narrow + wide) / 2
        mask = ops.select_blocks(*spread(middle)[1], q_len=length, kv_len=length)
        kept = blocks.density(mask, length, length, 0, BLOCK, BLOCK).mean().item()
        narrow, wide = (middle, wide) if kept > density else (narrow, middle)
    return spread(wide)


def flat_scores(heads: int, length: int, device: str) -> tuple[Tensor, Tensor]:
    """Equal column and slash scores, float32 [1, H, n_key_blocks]."""
    scores = torch.ones(1, heads, ceil_div(length, BLOCK), device=device)
    return scores, scores


def selected_blocks(heads: int, length: int, density: float, device: str) -> Tensor:
    """block_mask of columns and slashes as ``select_blocks`` makes them, with a budget per head."""
    _, scores = spread_scores(flat_scores(heads, length, device), length, density)
    return ops.select_blocks(*scores, q_len=length, kv_len=length)


def visible_in_blocks(n_q: int, n_k: int, block_k: int, device: torch.device | str) -> Tensor:
    """int64 [n_q, n_k]: entries of every block that causality leaves."""
    ahead = torch.arange(n_q, device=device)[:, None] * BLOCK - torch.arange(n_k, device=device) * block_k
    visible = torch.zeros_like(ahead)
    for row in range(BLOCK):
        visible += (ahead + row + 1).clamp(0, block_k)
    return visible


def kept_entries(block_mask: Tensor, length: int, block_k: int = 128) -> int:
    """Entries of the attention matrix, all heads together, that are in kept blocks and causal."""
    n_k = ceil_div(length, block_k)
    visible = visible_in_blocks(block_mask.shape[2], n_k, block_k, block_mask.device)
    heads = (blocks.unpack_bits(block_mask[0, head], n_k) for head in range(block_mask.shape[1]))
    return sum(int(visible[kept].sum()) for kept in heads)


def attention_flops(entries: int, shape: Shape) -> int:
    """Floating-point operations of both products over so many entries."""
    return 2 * entries * (shape.head_dim + shape.value_head_dim)


def causal_entries(shape: Shape) -> int:
    """Entries of dense causal attention, all heads together."""
    return shape.heads * shape.length * (shape.length + 1) // 2
