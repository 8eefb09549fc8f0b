"""One attention, computed at once: the ops that a rewritten graph calls, for callers that have tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor

from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels import ops
from sa_compile.kernels.shared.blocks import popcount
from sa_compile.passes.rewrite.selection import forced_slashes, selection_arguments


@dataclass(frozen=True)
class CausalAttention:
    """Causal attention with an offset, and at most a window and key padding.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]; row i has position ``i + q_offset`` and
    sees keys up to it, the last ``window`` of them (0: all); ``key_valid`` bool [B|1, Sk] or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    q_offset: int = 0
    window: int = 0
    key_valid: Tensor | None = None

    @property
    def key_segment(self) -> Tensor | None:
        """What the ops take for ``key_valid``: int32, 0 for valid keys and -1 for padding."""
        return None if self.key_valid is None else self.key_valid.to(torch.int32) - 1

    def without_unseen_keys(self) -> CausalAttention:
        """The same attention without the keys behind the last row, which no row sees; nothing is copied."""
        end = self.q_offset + self.query.shape[2]
        if end >= self.key.shape[2]:
            return self
        valid = self.key_valid[:, :end] if self.key_valid is not None else None
        key, value = self.key[:, :, :end], self.value[:, :, :end]
        return CausalAttention(self.query, key, value, self.scale, self.q_offset, self.window, valid)


@dataclass(frozen=True)
class Selection:
    """What was chosen: block_mask int32 [B, Hq, n_query_blocks, n_words].

    Stats measure the CRA of the last ``sample_rows`` rows of ``chunk_n`` chunks.
    """

    block_mask: Tensor
    chunk_n: int
    sample_rows: int


def select(
    query: Tensor,
    key: Tensor,
    config: SampleAttentionConfig,
    *,
    scale: float | None = None,
    q_offset: int = 0,
    key_segment: Tensor | None = None,
) -> Selection:
    """The blocks that ``config`` keeps of query [B, Hq, Sq, D] and key [B, Hkv, Sk, D], by the backend's ops.

    ``scale`` None is 1/sqrt(D); ``key_segment`` int32 [B|1, Sk]: 0 for valid keys, -1 for padding.
    """
    where: dict[str, Any] = {"key_segment": key_segment, "scale": scale, "q_offset": q_offset}
    if config.method == "adaptive":
        return _select_by_rows(query, key, config, where)
    q_len, k_len = query.shape[2], key.shape[2]
    chosen = selection_arguments(config, sympy.Integer(q_len), sympy.Integer(k_len))
    rows: dict[str, Any] = {"chunk_n": int(chosen.chunk_n), "sample_rows": chosen.sample_rows}
    scores = ops.sample_scores(query, key, **where, **rows, block_k=config.block_k)
    block_mask = ops.select_blocks(
        *scores,
        q_len=q_len,
        k_len=k_len,
        key_segment=key_segment,
        q_offset=q_offset,
        block_q=config.block_q,
        block_k=config.block_k,
        alpha_c=chosen.alpha_c,
        alpha_s=chosen.alpha_s,
        keep_sink=config.keep_sink,
        window_slashes=int(chosen.window_slashes),
        last_rows=chosen.last_rows,
    )
    return Selection(block_mask, **rows)


def _select_by_rows(
    query: Tensor, key: Tensor, config: SampleAttentionConfig, where: dict[str, Any]
) -> Selection:
    representatives = ops.block_representatives(
        key, key_segment=where["key_segment"], block_k=config.block_k, landmarks=config.landmarks
    )
    where = where | {
        "block_q": config.block_q,
        "block_k": config.block_k,
        "keep_sink": config.keep_sink,
        "window_slashes": forced_slashes(config),
    }
    block_mask = ops.select_adaptive(
        query, key, representatives, **where, tau=config.tau, last_rows=config.last_rows
    )
    if config.budget < 1:
        block_mask = block_mask | ops.select_budget(
            query, key, **where, budget=config.budget, tau=config.budget_tau, rows=config.budget_rows
        )
    return Selection(block_mask, config.chunk_n, config.rows_of_a_chunk)


def sampled(
    attention: CausalAttention,
    config: SampleAttentionConfig,
    observe: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """:func:`select`, then the attention of ``config.method``: out [B, Hq, Sq, Dv], and its stats.

    The stats are those of ``passes.rewrite.stats``, fp32 [Hq, 3], if ``config.stats``, else None;
    ``observe`` is shown the block mask. The attention must have no window.
    """
    a, segment = attention, attention.key_segment
    chosen = select(a.query, a.key, config, scale=a.scale, q_offset=a.q_offset, key_segment=segment)
    if observe is not None:
        observe(chosen.block_mask)
    stats = _stats(a, config, chosen, segment) if config.stats else None
    attend = _attend_with_means if config.means_dropped else _attend
    return attend(a, config, chosen.block_mask, segment), stats


def exact(attention: CausalAttention, config: SampleAttentionConfig) -> Tensor:
    """block_sparse_attention over exactly the blocks that the mask leaves: out [B, Hq, Sq, Dv]."""
    segment = attention.key_segment
    return _attend(attention, config, _allowed_blocks(attention, config, segment), segment)


def _attend(
    a: CausalAttention, config: SampleAttentionConfig, mask: Tensor, segment: Tensor | None
) -> Tensor:
    out, _ = ops.block_sparse_attention(
        a.query, a.key, a.value, mask, window=a.window, **_where(a, config, segment)
    )
    return out


def _attend_with_means(
    a: CausalAttention, config: SampleAttentionConfig, mask: Tensor, segment: Tensor | None
) -> Tensor:
    out, _ = ops.block_mean_attention(a.query, a.key, a.value, mask, **_where(a, config, segment))
    return out


def _where(a: CausalAttention, config: SampleAttentionConfig, segment: Tensor | None) -> dict[str, Any]:
    """What both attention ops take by name."""
    blocks = {"block_q": config.block_q, "block_k": config.block_k}
    return {"key_segment": segment, "scale": a.scale, "q_offset": a.q_offset, **blocks}


def _allowed_blocks(a: CausalAttention, config: SampleAttentionConfig, segment: Tensor | None) -> Tensor:
    return ops.mask_blocks(
        a.query,
        a.key,
        key_segment=segment,
        q_offset=a.q_offset,
        window=a.window,
        block_q=config.block_q,
        block_k=config.block_k,
    )


def _stats(
    a: CausalAttention, config: SampleAttentionConfig, chosen: Selection, segment: Tensor | None
) -> Tensor:
    """density, smallest and mean CRA over the batch, fp32 [Hq, 3], as of ``passes.rewrite.stats``."""
    mass = ops.attention_mass(
        a.query,
        a.key,
        chosen.block_mask,
        key_segment=segment,
        scale=a.scale,
        q_offset=a.q_offset,
        chunk_n=chosen.chunk_n,
        sample_rows=chosen.sample_rows,
        block_q=config.block_q,
        block_k=config.block_k,
    )
    kept = popcount(chosen.block_mask).sum((2, 3), dtype=torch.float32)
    allowed = popcount(_allowed_blocks(a, config, segment)).sum((2, 3), dtype=torch.float32)
    density = (kept / allowed.clamp(min=1.0)).mean(0)
    return torch.stack([density, mass.amin(0), mass.mean(0)], 1)
