"""The index: one bit a block of the attention matrix, and the ways to get there.

A ``block_mask`` is int32 [B|1, Hq|1, n_query_blocks, n_words], n_words = max(2, ceil(n_key_blocks / 32)); bit
``j % 32`` of word ``j // 32`` of query block ``i`` says that block (i, j) is kept. Bits of blocks that do not
exist are 0. Row ``i`` of the queries has position ``i + q_offset``. Nothing here synchronises with the host.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import WORD_BITS, ceil_div, n_words, query_block_positions


def pack_bits(blocks: Tensor) -> Tensor:
    """Bool [..., n_key_blocks] to int32 words [..., n_words], unused bits 0."""
    n_blocks = blocks.shape[-1]
    padded = F.pad(blocks, (0, n_words(n_blocks) * WORD_BITS - n_blocks))
    bit = torch.arange(WORD_BITS, dtype=torch.int32, device=blocks.device)
    weight = torch.bitwise_left_shift(torch.ones_like(bit), bit)
    return (padded.unflatten(-1, (-1, WORD_BITS)) * weight).sum(-1, dtype=torch.int32)


def unpack_bits(block_mask: Tensor, n_key_blocks: int) -> Tensor:
    """int32 words [..., W] to bool [..., n_key_blocks]; the inverse of :func:`pack_bits`."""
    bit = torch.arange(WORD_BITS, dtype=torch.int32, device=block_mask.device)
    bits = torch.bitwise_right_shift(block_mask.unsqueeze(-1), bit) & 1
    return bits.flatten(-2)[..., :n_key_blocks].bool()


def causal_blocks(
    q_len: int, kv_len: int, q_offset: int, block_q: int, block_k: int, device: torch.device
) -> Tensor:
    """Bool [n_query_blocks, n_key_blocks]: causality allows at least one entry of the block."""
    _, last = query_block_positions(q_len, q_offset, block_q, device)
    key_start = torch.arange(ceil_div(kv_len, block_k), device=device) * block_k
    return key_start <= last[:, None]


def slash_blocks(
    slashes: Tensor,
    q_len: int,
    kv_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    stops: Tensor | None = None,
) -> Tensor:
    """Bool [..., n_query_blocks, n_key_blocks] from kept slashes, bool [..., n_slashes].

    Block (i, j) is in slash s if some row of block i has position p with ``p // block_k - j == s``. With
    ``stops`` (``rows.block_stops``) only rows before a block's stop count; slashes are [B, H, n_slashes].
    """
    device = slashes.device
    n_slashes = slashes.shape[-1]
    first, last = query_block_positions(q_len, q_offset, block_q, device)
    if stops is not None:
        last = (stops - 1 + q_offset)[:, None]  # [B|1, 1, n_query_blocks]
    low, high = first // block_k, last // block_k
    key_block = torch.arange(ceil_div(kv_len, block_k), device=device)
    kept = torch.zeros(1, dtype=torch.bool, device=device)
    # A query block's rows lie in at most this many consecutive blocks of block_k positions.
    for step in range((block_q - 1) // block_k + 2):
        slash = (low + step)[:, None] - key_block  # [n_query_blocks, n_key_blocks]
        exists = (slash >= 0) & (slash < n_slashes) & (low + step <= high)[..., None]
        kept = kept | (slashes[..., slash.clamp(0, max(n_slashes - 1, 0))] & exists)
    return kept


def bits_from_strips(
    columns: Tensor, slashes: Tensor, q_len: int, kv_len: int, q_offset: int, block_q: int, block_k: int
) -> Tensor:
    """block_mask [..., n_query_blocks, words] of kept columns and slashes (arXiv 2406.15486v3, section 3).

    ``columns`` and ``slashes`` are bool [..., n_key_blocks]. Block (i, j) is kept iff causality allows an
    entry of it and column j is kept, or a slash ``p // block_k - j`` of some row position p of block i.
    """
    kept = slash_blocks(slashes, q_len, kv_len, q_offset, block_q, block_k) | columns.unsqueeze(-2)
    return pack_bits(kept & causal_blocks(q_len, kv_len, q_offset, block_q, block_k, columns.device))


def bits_from_window(
    q_len: int,
    kv_len: int,
    window: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    *,
    sink_blocks: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """block_mask [1, 1, n_query_blocks, words] of a causal sliding window.

    Block (i, j) is kept iff some entry of it has ``p - window < k <= p`` (``window <= 0``: no limit), or
    causality allows an entry of it and ``j < sink_blocks``.
    """
    device = torch.device(device)
    first, _ = query_block_positions(q_len, q_offset, block_q, device)
    key_block = torch.arange(ceil_div(kv_len, block_k), device=device)
    kept = causal_blocks(q_len, kv_len, q_offset, block_q, block_k, device)
    if window > 0:
        key_last = ((key_block + 1) * block_k).clamp(max=kv_len) - 1
        kept = kept & ((key_last > first[:, None] - window) | (key_block < sink_blocks))
    return pack_bits(kept)[None, None]


def bits_from_block_mask(block_mask: Any) -> Tensor:
    """block_mask [B, H, n_query_blocks, words] of a ``torch.nn.attention.flex_attention.BlockMask``.

    The union of its partial and its full blocks; block sizes are those of ``block_mask.BLOCK_SIZE``. What its
    ``mask_mod`` does inside partial blocks is not part of the index.
    """
    bits = _bits_from_lists(block_mask.kv_num_blocks, block_mask.kv_indices)
    if block_mask.full_kv_num_blocks is None:
        return bits
    return bits | _bits_from_lists(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)


def _bits_from_lists(counts: Tensor, indices: Tensor) -> Tensor:
    n_key_blocks = indices.shape[-1]
    listed = torch.arange(n_key_blocks, device=indices.device) < counts.unsqueeze(-1)
    # Entries past the count are arbitrary: they are sent to a column that is cut off afterwards.
    target = torch.where(listed, indices.long(), n_key_blocks)
    kept = torch.zeros((*indices.shape[:-1], n_key_blocks + 1), dtype=torch.bool, device=indices.device)
    return pack_bits(kept.scatter_(-1, target, True)[..., :-1])


def popcount(words: Tensor) -> Tensor:
    """Number of set bits of every int32 word, as int32."""
    low, high = words & 0xFFFF, torch.bitwise_right_shift(words, 16) & 0xFFFF
    return _popcount16(low) + _popcount16(high)


def _popcount16(x: Tensor) -> Tensor:
    x = x - ((x >> 1) & 0x5555)
    x = (x & 0x3333) + ((x >> 2) & 0x3333)
    x = (x + (x >> 4)) & 0x0F0F
    return (x + (x >> 8)) & 0x1F


def density(block_mask: Tensor, q_len: int, kv_len: int, q_offset: int, block_q: int, block_k: int) -> Tensor:
    """Kept blocks as a share of the blocks that causality allows, float64 [B|1, Hq|1].

    Only bits of allowed blocks count. 1.0 where causality allows no block at all.
    """
    allowed = causal_blocks(q_len, kv_len, q_offset, block_q, block_k, block_mask.device)
    allowed_bits = pack_bits(allowed)
    kept = popcount(block_mask & allowed_bits).sum((-1, -2)).double()
    total = popcount(allowed_bits).sum()
    return torch.where(total > 0, kept / total.clamp(min=1), 1.0)
