"""The op: ``block_sparse_attention``, and what dropped blocks add to it in plain PyTorch, fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared import eager as shared
from ..shared.blocks import unpack_bits
from ..shared.eager import grouped_product
from ..shared.shapes import blocks_of_keys, ceil_div
from .op import Arguments


def block_mean_attention(a: Arguments) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.sampleattn.block_sparse_attention.default(*a.of_kept_blocks)
    # In place, into outputs that nobody else has yet: at 1M tokens a second output would take gigabytes.
    add_block_means_(a, out, lse)
    return out, lse


def block_means(
    key: Tensor, value: Tensor, key_segment: Tensor | None, block_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean key and mean value of every key block, the log of its number of valid keys, and their spread.

    fp32 [B, Hkv, n, D], [B, Hkv, n, Dv], [B|1, 1, n] and [B, Hkv, n]. A block without valid keys has means
    and a spread of 0, and -inf.
    """
    valid = _valid_by_block(key, key_segment, block_k)
    count = valid.sum(-1).float()
    mean_key, mean_value = (mean_of_blocks(x, key_segment, block_k) for x in (key, value))
    distance = torch.where(valid[..., None], _by_block(key, block_k) - mean_key[..., None, :], 0)
    spread = distance.square_().sum((-1, -2)) / (count.clamp(min=1) * max(key.shape[3], 1))
    return mean_key, mean_value, count.log(), spread


def mean_of_blocks(x: Tensor, key_segment: Tensor | None, block_k: int) -> Tensor:
    """Mean valid row of every key block of x [B, Hkv, Sk, C], fp32 [B, Hkv, n, C]; 0 without valid keys."""
    valid = _valid_by_block(x, key_segment, block_k)
    total = torch.where(valid[..., None], _by_block(x, block_k), 0).sum(-2, dtype=torch.float32)
    return total / valid.sum(-1).float().clamp(min=1)[..., None]


def add_block_means_(a: Arguments, out: Tensor, lse: Tensor) -> None:
    """Add the means of dropped blocks, in place, to what ``block_sparse_attention`` gave for kept ones.

    Of ``out`` a sink has its share already: it has a part in the kept blocks' mass, but not in ``lse``.
    """
    query, key, value, block_q, block_k = a.query, a.key, a.value, a.block_q, a.block_k
    group, kv_len, q_offset = query.shape[1] // key.shape[1], key.shape[2], a.q_offset
    mean_key, mean_value, log_count, spread = block_means(key, value, a.key_segment, block_k)
    spread = spread.repeat_interleave(group, 1)
    # 0 * NaN is NaN: means that are not finite are taken out of the product and marked in the rows that drop
    # them.
    finite = mean_value.isfinite()
    clean = torch.where(finite, mean_value, 0)
    poisoned = ~finite.all(-1).repeat_interleave(group, 1)  # [B, Hq, n]
    last_key = (torch.arange(ceil_div(kv_len, block_k), device=key.device) + 1) * block_k - 1
    last_key = last_key.clamp(max=kv_len - 1)
    for part in _row_chunks(query, value, last_key.numel(), block_q):
        blocks = slice(part.start // block_q, ceil_div(part.stop, block_q))
        end = _blocks_before((blocks.stop - 1) * block_q + q_offset, kv_len, block_k)
        if end == 0:
            continue
        first = torch.arange(blocks.start, blocks.stop, device=query.device) * block_q + q_offset
        dropped = ~unpack_bits(a.block_mask[:, :, blocks], end) & (last_key[:end] <= first[:, None])
        dropped = dropped & (log_count[:, :, None, :end] >= 0)  # [B|1, Hq|1, blocks, end]
        drops_poison = (dropped & poisoned[:, :, None, :end]).any(-1)
        dropped, drops_poison = (
            x.repeat_interleave(block_q, 2)[:, :, : part.stop - part.start] for x in (dropped, drops_poison)
        )
        rows = query[:, :, part].float() * a.scale
        half_norm = 0.5 * rows.square().sum(-1, keepdim=True)
        gain = torch.minimum(half_norm * spread[:, :, None, :end], log_count[:, :, None, :end])
        scores = grouped_product(rows, mean_key[:, :, :end].transpose(-1, -2))
        scores = scores.add_(gain).add_(log_count[:, :, None, :end]).masked_fill_(~dropped, -torch.inf)
        kept_lse = lse[:, :, part]
        with_sink = kept_lse if a.sinks is None else torch.logaddexp(kept_lse, a.sinks[:, None])
        highest = torch.maximum(scores.amax(-1), with_sink)
        highest = torch.where(highest == -torch.inf, 0, highest)
        weights = scores.sub_(highest[..., None]).exp_()
        kept = torch.exp(with_sink - highest)
        dropped_mass = weights.sum(-1)
        total = dropped_mass + kept
        lse[:, :, part] = torch.logaddexp(kept_lse, highest + dropped_mass.log())
        result = grouped_product(weights, clean[:, :, :end])
        result = result.add_(kept[..., None] * out[:, :, part])
        result = result.div_(torch.where(total == 0, 1, total)[..., None])
        out[:, :, part] = result.masked_fill_(drops_poison[..., None], torch.nan).to(out.dtype)


def _row_chunks(query: Tensor, value: Tensor, n_key_blocks: int, block_q: int) -> list[slice]:
    """Rows that begin with a query block and whose scores, queries and outputs fit in ``SCORE_BYTES``."""
    batch, heads, q_len, head_dim = query.shape
    floats = 4 * n_key_blocks + 2 * head_dim + 2 * value.shape[3]  # of a row: what lives at a time
    step = max(shared.SCORE_BYTES // max(4 * batch * heads * floats, 1) // block_q, 1) * block_q
    return [slice(start, min(start + step, q_len)) for start in range(0, q_len, step)]


def _blocks_before(position: int, kv_len: int, block_k: int) -> int:
    """How many key blocks hold only keys that a row at this position sees."""
    if position >= kv_len - 1:
        return ceil_div(kv_len, block_k)
    return max(position + 1, 0) // block_k


def _valid_by_block(x: Tensor, key_segment: Tensor | None, block_k: int) -> Tensor:
    """Which keys of x [B, Hkv, Sk, C] are valid, bool [B|1, 1, n, block_k]."""
    every = torch.ones((1, x.shape[2]), dtype=torch.bool, device=x.device)
    return blocks_of_keys(every if key_segment is None else key_segment == 0, block_k)[:, None]


def _by_block(x: Tensor, block_k: int) -> Tensor:
    """[B, Hkv, Sk, C] to [B, Hkv, n, block_k, C]; keys that do not exist are 0."""
    missing = -x.shape[2] % block_k
    padded = torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x
    return padded.unflatten(2, (-1, block_k))
