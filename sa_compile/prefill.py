"""One attention, computed at once: the ops that a rewritten graph calls, for callers that have tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels import ops
from sa_compile.kernels.shared import checks
from sa_compile.kernels.shared.blocks import popcount
from sa_compile.kernels.shared.grid import Grid
from sa_compile.methods import ON_TENSORS, Attention, Calls, Forced, Kept, kept_mass, method_of


@dataclass(frozen=True)
class CausalAttention:
    """Causal attention with an offset, and at most a window, key padding and sinks.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]; row i has position ``i + q_offset`` and
    sees keys up to it, the last ``window`` of them (0: all); ``key_valid`` bool [B|1, Sk] or None; ``sinks``
    [Hq] or [1]: logits of a key without a value, or None. With a ``q_stride`` above 1 query blocks stand
    apart, as ``kernels.shared.shapes.row_positions`` says.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    q_offset: int = 0
    window: int = 0
    key_valid: Tensor | None = None
    sinks: Tensor | None = None
    q_stride: int = 1

    @property
    def key_segment(self) -> Tensor | None:
        """What the ops take for ``key_valid``: int32, 0 for valid keys and -1 for padding."""
        return None if self.key_valid is None else self.key_valid.to(torch.int32) - 1

    @property
    def sink_logits(self) -> Tensor | None:
        """What the ops take for ``sinks``."""
        return None if self.sinks is None else self.sinks.float()

    def without_unseen_keys(self) -> CausalAttention:
        """The same attention without the keys behind the last row, which no row sees; nothing is copied."""
        end = self.q_offset + self.query.shape[2]
        if end >= self.key.shape[2]:
            return self
        valid = self.key_valid[:, :end] if self.key_valid is not None else None
        key, value = self.key[:, :, :end], self.value[:, :, :end]
        return replace(self, key=key, value=value, key_valid=valid)


def keep(attention: CausalAttention, config: SampleAttentionConfig, run: Calls = ON_TENSORS) -> Kept:
    """What ``config.method`` keeps of an attention; ``run`` calls the ops.

    Raises ValueError for tensors that do not fit.
    """
    a, method, forced = _seen(attention, config), method_of(config), Forced.of(config)
    if a.q_stride == 1 or not forced.last_rows:
        return method.keep(run, config, a, forced, attention.value)
    # An op counts the last of its own rows: which of a prompt's are here, positions say.
    kept = method.keep(run, config, a, replace(forced, last_rows=0), attention.value)
    last = _blocks_of_last_rows(a, forced.last_rows)
    return Kept(kept.block_mask | last, _without_rest(kept, (last != 0).any(-1)))


def sampled(
    attention: CausalAttention,
    config: SampleAttentionConfig,
    observe: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """:func:`keep`, then :func:`over_blocks`; ``observe`` is shown the block mask.

    The attention must have no window. Raises ValueError for tensors that do not fit.
    """
    a = attention
    checks.check_qkv("sampled", a.query, a.key, a.value)
    kept = keep(a, config)
    if observe is not None:
        observe(kept.block_mask)
    return over_blocks(a, config, kept)


def over_blocks(
    attention: CausalAttention, config: SampleAttentionConfig, kept: Kept
) -> tuple[Tensor, Tensor | None]:
    """The attention of ``config.method`` over what it keeps: out [B, Hq, Sq, Dv], and its stats.

    The stats are those of ``passes.rewrite.stats``, fp32 [Hq, 3], if ``config.stats``, else None.
    """
    a, seen = attention, _seen(attention, config)
    stats = _stats(a, config, seen, kept.block_mask) if config.stats else None
    return method_of(config).attend(ON_TENSORS, config, seen, a.value, kept)[0], stats


def _seen(a: CausalAttention, config: SampleAttentionConfig) -> Attention:
    where: dict[str, Any] = {"scale": a.scale, "q_offset": a.q_offset, "key_segment": a.key_segment}
    seen = Attention.of_tensors(a.query, a.key, config, **where, q_stride=a.q_stride)
    return replace(seen, sinks=a.sink_logits)


def exact(attention: CausalAttention, config: SampleAttentionConfig) -> Tensor:
    """block_sparse_attention over exactly the blocks that the mask leaves: out [B, Hq, Sq, Dv]."""
    a, segment = attention, attention.key_segment
    out, _ = ops.block_sparse_attention(
        a.query,
        a.key,
        a.value,
        _allowed_blocks(a, config, segment),
        key_segment=segment,
        sinks=a.sink_logits,
        scale=a.scale,
        q_offset=a.q_offset,
        window=a.window,
        block_q=config.block_q,
        block_k=config.block_k,
        q_stride=a.q_stride,
    )
    return out


def _without_rest(kept: Kept, whole: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """``kept.rest`` where query blocks keep every block: ``whole`` bool [B|1, 1, n_query_blocks]."""
    if kept.rest is None:
        return None
    value, share, level = kept.rest
    return value.masked_fill(whole[..., None], 0), share.masked_fill(whole, 0), level


def _blocks_of_last_rows(a: Attention, last_rows: int) -> Tensor:
    """All blocks of the query blocks that hold one of the prompt's last rows, int32 [B|1, 1, n, n_words]."""
    kv_len, device = a.key.shape[2], a.key.device
    end = torch.full((1, 1), kv_len, device=device)
    if a.key_segment is not None:
        behind = torch.arange(1, kv_len + 1, device=device)
        end = torch.where(a.key_segment == 0, behind, 0).amax(-1, keepdim=True)
    grid = Grid(a.query.shape[2], kv_len, a.q_offset, a.block_q, a.block_k, a.q_stride)
    first, last = grid.query_block_positions(device)
    whole = (first < end) & (last >= end - last_rows)  # [B|1, n_query_blocks]
    allowed = ops.mask_blocks(
        *(a.query, a.key),
        key_segment=a.key_segment,
        q_offset=a.q_offset,
        block_q=a.block_q,
        block_k=a.block_k,
        q_stride=a.q_stride,
    )
    return torch.where(whole[:, None, :, None], allowed, 0)


def _allowed_blocks(a: CausalAttention, config: SampleAttentionConfig, segment: Tensor | None) -> Tensor:
    return ops.mask_blocks(
        a.query,
        a.key,
        key_segment=segment,
        q_offset=a.q_offset,
        window=a.window,
        block_q=config.block_q,
        block_k=config.block_k,
        q_stride=a.q_stride,
    )


def _stats(a: CausalAttention, config: SampleAttentionConfig, seen: Attention, block_mask: Tensor) -> Tensor:
    """density, smallest and mean CRA over the batch, fp32 [Hq, 3], as of ``passes.rewrite.stats``."""
    mass = kept_mass(ON_TENSORS, method_of(config), config, seen, block_mask)
    kept = popcount(block_mask).sum((2, 3), dtype=torch.float32)
    allowed = popcount(_allowed_blocks(a, config, seen.key_segment)).sum((2, 3), dtype=torch.float32)
    density = (kept / allowed.clamp(min=1.0)).mean(0)
    return torch.stack([density, mass.amin(0), mass.mean(0)], 1)
