"""Causal attention whose blocks ``flex_attention`` takes from lists, read when it runs.

Where the lists are those of the causal mask (``create_block_mask`` made them of it) the attention is sampled.
Other lists leave out blocks that the mask allows, or allow entries that it masks: then the attention is that
of the lists, exactly, and a warning says so.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.shared.blocks import pack_bits
from sa_compile.kernels.shared.shapes import ceil_div
from sa_compile.late.attention import attend, attend_densely, config_of, laid_out
from sa_compile.prefill import CausalAttention

OTHER_BLOCKS = -2


def read_block_lists(
    counts: Tensor,
    indices: Tensor,
    full_counts: Tensor | None,
    full_indices: Tensor | None,
    key_valid: Tensor | None,
    start: Tensor | None,
    q_len: int,
    kv_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    site: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """``found`` int64 [3] on the CPU, and the listed and the full blocks, bool [B|1, Hq|1, n_query_blocks,
    n_key_blocks].

    The lists are those of ``passes.site.BlockLists``; the mask is causal from ``q_offset + start`` on with
    ``key_valid`` bool [B|1, Sk]. ``found`` is (offset, 0, are keys padding?) if the lists are the mask's,
    else (``OTHER_BLOCKS``, offset, do full blocks hold entries that the mask takes away?), and a warning says
    so for each ``site``. Raises ValueError for lists that name a block twice or have other rows of blocks.
    """
    offset = q_offset + (int(start) if start is not None else 0)
    n_query_blocks, n_key_blocks = ceil_div(q_len, block_q), ceil_div(kv_len, block_k)
    if counts.shape[-1] != n_query_blocks:
        raise ValueError(
            f"the block lists of {site or 'an attention'} have {counts.shape[-1]} rows of blocks, expected "
            f"{n_query_blocks} for {q_len} query rows"
        )
    partial = _blocks(counts, indices, n_key_blocks)
    full = torch.zeros_like(partial)
    total = counts.sum()
    if full_counts is not None and full_indices is not None:
        full, total = _blocks(full_counts, full_indices, n_key_blocks), total + full_counts.sum()
    some, every = _allowed(q_len, kv_len, offset, block_q, block_k, key_valid, counts.device)
    listed = partial | full
    twice = (partial.sum() + full.sum() != total) | (partial & full).any()
    cuts, leaves_out = (full & ~every).any(), (some & ~listed).any()
    padded = torch.zeros_like(cuts) if key_valid is None else ~key_valid.all()
    twice, cuts, leaves_out, padded = torch.stack([twice, cuts, leaves_out, padded]).tolist()
    if twice:
        raise ValueError(f"the block lists of {site or 'an attention'} name a block twice")
    if not cuts and not leaves_out and 0 <= offset <= kv_len - q_len:
        return torch.tensor([offset, 0, padded]), listed, full
    warnings.warn(
        f"sampleattn: the block lists of {site or 'an attention'}, read when it ran, are not those of its "
        "mask_mod: what reads them is not sampled, but exactly the blocks that are listed",
        stacklevel=2,
    )
    return torch.tensor([OTHER_BLOCKS, offset, cuts]), listed, full


def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    found: Tensor,
    listed: Tensor,
    full: Tensor,
    key_valid: Tensor | None,
    block_q: int,
    block_k: int,
    scale: float,
    options: str,
) -> tuple[Tensor, Tensor]:
    """Sampled attention, or that of other lists: out [B, Hq, Sq, Dv] (memory [B, Sq, Hq, Dv]) and its stats.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]; ``found``, ``listed`` and ``full`` as
    ``read_block_lists`` gives them. Stats: as of ``late.attention.attend``.
    """
    first, offset, flag = found.tolist()
    if first != OTHER_BLOCKS:
        return attend(query, key, value, None, found[0], key_valid if flag else None, None, scale, options)
    config = config_of(options)
    attention = CausalAttention(query, key, value, scale, offset, 0, key_valid)
    if flag or offset < 0 or not _is_block_size(block_q) or not _is_block_size(block_k):
        out = attend_densely(attention, _entries(attention, listed, full, block_q, block_k))
    else:
        out, _ = ops.block_sparse_attention(
            query,
            key,
            value,
            pack_bits(listed),
            key_segment=attention.key_segment,
            scale=scale,
            q_offset=offset,
            block_q=block_q,
            block_k=block_k,
        )
    return laid_out(out, None, query, config)


def _blocks(counts: Tensor, indices: Tensor, n_key_blocks: int) -> Tensor:
    """Listed blocks, bool [..., n_query_blocks, n_key_blocks]; indices past the counts are arbitrary."""
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts.unsqueeze(-1)
    target = torch.where(listed, indices.long(), n_key_blocks)
    kept = torch.zeros((*indices.shape[:-1], n_key_blocks + 1), dtype=torch.bool, device=indices.device)
    return kept.scatter_(-1, target, True)[..., :-1].contiguous()


def _allowed(
    q_len: int,
    kv_len: int,
    offset: int,
    block_q: int,
    block_k: int,
    key_valid: Tensor | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Of which blocks the mask allows some entry, and of which every one: bool [B|1, 1, blocks, blocks]."""
    first_row = torch.arange(0, q_len, block_q, device=device)
    last_position = (first_row + block_q).clamp(max=q_len) - 1 + offset
    first_key = torch.arange(0, kv_len, block_k, device=device)
    last_key = (first_key + block_k).clamp(max=kv_len) - 1
    some = first_key <= last_position[:, None]
    every = last_key <= (first_row + offset)[:, None]
    if key_valid is None:
        return some[None, None], every[None, None]
    missing = len(first_key) * block_k - kv_len
    valid = torch.nn.functional.pad(key_valid, (0, missing)).unflatten(-1, (-1, block_k))  # [B|1, blocks, k]
    position = torch.arange(valid[0].numel(), device=device).view(-1, block_k)
    nearest = torch.where(valid, position, valid[0].numel()).amin(-1)[:, None, None]
    whole = (valid | (position >= kv_len)).all(-1)[:, None, None]
    return nearest <= last_position[:, None], every & whole


def _entries(a: CausalAttention, listed: Tensor, full: Tensor, block_q: int, block_k: int) -> Tensor:
    """The mask of the lists, entry by entry: bool [B|1, Hq|1, Sq, Sk]."""
    row = torch.arange(a.query.shape[2], device=a.query.device)
    key = torch.arange(a.key.shape[2], device=a.query.device)
    at = (..., (row // block_q)[:, None], key // block_k)
    causal = key <= row[:, None] + a.q_offset
    if a.key_valid is not None:
        causal = causal & a.key_valid[:, None, None]
    return full[at] | (listed[at] & causal)


def _is_block_size(size: int) -> bool:
    return 16 <= size <= 128 and size & (size - 1) == 0
