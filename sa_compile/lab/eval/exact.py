"""What only exact attention can tell: the error of a selection, its bound, and how sparse the heads are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sa_compile import metrics
from sa_compile.kernels import ops

SD_ALPHA = 0.95
_SD_CHUNKS, _SD_ROWS = 16, 16  # rows of a prompt whose sparsity is measured: the tails of equal chunks


def output_error(
    query: Tensor, key: Tensor, value: Tensor, block_mask: Tensor, *, scale: float, **blocks: Any
) -> tuple[Tensor, Tensor]:
    """The largest ||O~ - O||_1 of a row, and the bound on it from the CRA of all rows, fp32 [B, Hq] each.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv], block_mask as the block-sparse op takes
    it, ``blocks`` its q_offset, block_q and block_k. Both outputs are computed in fp32, whatever came. The
    bound is 2 (1 - CRA) R with R the largest 1-norm of a head's values (arXiv 2406.15486, theorem 1).
    """
    query, key, value = (x.float() for x in (query, key, value))
    whole = block_mask.expand(*query.shape[:2], -1, -1).contiguous()
    every = ops.mask_blocks(query, key, **blocks)
    outputs = [
        ops.block_sparse_attention(query, key, value, m, scale=scale, **blocks)[0] for m in (whole, every)
    ]
    change = (outputs[0] - outputs[1]).abs().sum(-1).amax(-1)
    rows: dict[str, Any] = {"chunk_n": 1, "sample_rows": query.shape[2]}
    kept = ops.attention_mass(query, key, whole, scale=scale, **rows, **blocks)
    largest = value.abs().sum(-1).amax(-1).repeat_interleave(query.shape[1] // key.shape[1], 1)
    return change, 2 * (1 - kept).clamp(min=0) * largest


def sparsity(query: Tensor, key: Tensor, *, scale: float, q_offset: int) -> Tensor:
    """SD(0.95) of every head at token level, fp32 [B, Hq], over 16 rows at the end of each of 16 chunks."""
    q_len = query.shape[2]
    parts, entries = [], []
    for chunk in range(1, _SD_CHUNKS + 1):
        stop = chunk * q_len // _SD_CHUNKS
        start = max(stop - _SD_ROWS, (chunk - 1) * q_len // _SD_CHUNKS)
        if start == stop:
            continue
        rows = slice(start, stop)
        offset = start + q_offset
        share = metrics.sparsity_degree(
            query[:, :, rows], key[:, :, : stop + q_offset], SD_ALPHA, scale=scale, q_offset=offset
        )
        parts.append(share)
        entries.append(float(sum(range(offset + 1, stop + q_offset + 1))))
    weights = torch.tensor(entries, dtype=torch.float64, device=query.device)
    return (torch.stack(parts, -1) @ weights / weights.sum()).float()
