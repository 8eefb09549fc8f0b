"""Attention at an offset that is read when it runs, sampled; and as the model spelled it where that fails."""

from __future__ import annotations

import functools
import json
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig, selection_options
from sa_compile.late.additive import attend_to_lowest, read_allowed, rows_without_keys
from sa_compile.late.causal_entries import read_causal
from sa_compile.prefill import CausalAttention

NOT_CAUSAL = -1
# Of an added mask with padding: rows that see no key do not weigh all keys alike.
_UNEVEN = 2


def options_text(config: SampleAttentionConfig) -> str:
    """The options that sampling reads, as an op takes them."""
    names = (*selection_options(config), "stats")
    return json.dumps({name: getattr(config, name) for name in names}, sort_keys=True)


@functools.lru_cache(maxsize=64)
def config_of(options: str) -> SampleAttentionConfig:
    """The options that ``options_text`` wrote."""
    return SampleAttentionConfig(**json.loads(options))


def read_mask(mask: Tensor, site: str) -> tuple[Tensor, Tensor]:
    """``found`` int64 [3] on the CPU (causal offset, window, are keys padding?) and key_valid bool [B, Sk].

    mask [B|1, 1, Sq, Sk] or with dims left out in front: bool, or in floats as attention that is written out
    adds it to the scores. An offset of ``NOT_CAUSAL`` says that the mask is not causal with these; a warning
    says so once for each ``site``.
    """
    mask = mask.reshape(-1, *mask.shape[-2:])
    entries = (mask, True) if mask.dtype == torch.bool else read_allowed(mask)
    meaning = None if entries is None else read_causal(entries[0])
    if entries is None or meaning is None:
        warnings.warn(
            f"sampleattn: the mask of {site or 'an attention'}, read when it ran, is not causal (with "
            "offset, window and padding): what reads it is not sampled, but computed with that mask",
            stacklevel=2,
        )
        return torch.tensor([NOT_CAUSAL, 0, 0]), torch.ones_like(mask[:, -1], dtype=torch.bool)
    padded = _UNEVEN if meaning.padded and not entries[1] else int(meaning.padded)
    return torch.tensor([meaning.q_offset, meaning.window, padded]), meaning.key_valid


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    found: Tensor,
    key_valid: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    options: str,
    empty_is_nan: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sampled attention at the offset ``found``: out [B, Hq, Sq, Dv] (memory [B, Sq, Hq, Dv]) and its stats.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]; ``found`` int64 on the CPU: the causal
    offset alone, or with a mask what ``read_mask`` found; ``key_valid`` bool [B|1, Sk] or None; ``sinks``
    [Hq] or [1], or None, as it is with a mask. A window is exact, and ``NOT_CAUSAL`` is full attention with
    ``mask``: SDPA with one of bools, written out with one that is added.
    Stats: fp32 [Hq, 3] as of ``prefill.sampled`` (1 where nothing was sampled), [0, 3] unless ``options`` ask
    for them. Raises ValueError for a negative offset without a mask.
    """
    config = config_of(options)
    q_offset, window, padded = found.tolist() if mask is not None else (int(found), 0, True)
    key_valid = key_valid if padded else None
    attention = CausalAttention(query, key, value, scale, q_offset, window, key_valid, sinks)
    stats = None
    if mask is not None and q_offset == NOT_CAUSAL:
        of_sdpa = sinks is None and not empty_is_nan
        out = attend_densely(attention, mask) if of_sdpa else _written_out(attention, mask, empty_is_nan)
    elif q_offset < 0:
        raise ValueError(
            f"the causal offset of an attention, read when it ran, must be at least 0, got {q_offset}: its "
            "first rows would see no key"
        )
    elif q_offset + query.shape[2] > key.shape[2] and sinks is None:
        out = attend_densely(attention, _mask_of(attention))
    elif window or q_offset + query.shape[2] > key.shape[2]:
        out = prefill.exact(attention.without_unseen_keys(), config)
    else:
        out, stats = prefill.sampled(attention.without_unseen_keys(), config)
    if mask is not None and mask.dtype != torch.bool and q_offset != NOT_CAUSAL and padded:
        out = _lowest_in_empty_rows(attention, mask, out, padded != _UNEVEN, empty_is_nan)
    return laid_out(out, stats, query, config)


def laid_out(
    out: Tensor, stats: Tensor | None, query: Tensor, config: SampleAttentionConfig
) -> tuple[Tensor, Tensor]:
    """``out`` in the memory that the ops promise, and its stats: 1 where nothing was sampled."""
    if stats is None:
        stats = query.new_ones((query.shape[1] if config.stats else 0, 3), dtype=torch.float32)
    return out.transpose(1, 2).contiguous().transpose(1, 2), stats


def _mask_of(a: CausalAttention) -> Tensor:
    position = torch.arange(a.query.shape[2], device=a.query.device)[:, None] + a.q_offset
    allowed = torch.arange(a.key.shape[2], device=a.query.device) <= position
    return allowed if a.key_valid is None else allowed & a.key_valid[:, None, None].bool()


def attend_densely(a: CausalAttention, mask: Tensor) -> Tensor:
    """SDPA with a mask: heads are repeated, since on a GPU its kernels that take a mask know no groups."""
    key, value = (_repeated(a, x) for x in (a.key, a.value))
    return F.scaled_dot_product_attention(a.query, key, value, attn_mask=mask, scale=a.scale)


def _written_out(a: CausalAttention, mask: Tensor, empty_is_nan: bool) -> Tensor:
    """Product, scale, mask, softmax, product, as the model has it: SDPA takes no sinks and no mask of another
    dtype, and not every kernel of it gives NaN to a row of -inf."""
    scores = a.query @ _repeated(a, a.key).transpose(2, 3) * a.scale + mask
    weights = scores.softmax(-1, dtype=torch.float32)
    if a.sink_logits is not None:
        sinks, lse = a.sink_logits.view(-1, 1, 1), scores.float().logsumexp(-1, keepdim=True)
        weights = weights * (lse - sinks).sigmoid()
        if not empty_is_nan:
            weights = weights.masked_fill((lse == -torch.inf) & (sinks > -torch.inf), 0)
    return weights.to(a.value.dtype) @ _repeated(a, a.value)


def _lowest_in_empty_rows(
    a: CausalAttention, mask: Tensor, out: Tensor, even: bool, empty_is_nan: bool
) -> Tensor:
    """``out`` with what an added mask makes of rows that see no key; ``even``: all keys weigh alike there,
    those behind the row too."""
    assert a.key_valid is not None
    empty = rows_without_keys(a.key_valid, a.query.shape[2], a.q_offset, a.window)
    if even:
        mean = _beside_sinks(a, _repeated(a, a.value.mean(2, keepdim=True)), empty_is_nan)
        return torch.where(empty[:, None, :, None], mean, out)
    rows = empty.any(0).nonzero().squeeze(-1)
    mask = mask.reshape(-1, *mask.shape[-2:])
    lowest = attend_to_lowest(mask, rows, a.value, empty_is_nan or a.sinks is not None)
    lowest = _beside_sinks(a, _repeated(a, lowest), empty_is_nan)
    out = out.clone()
    out[:, :, rows] = torch.where(empty[:, None, rows, None], lowest, out[:, :, rows])
    return out


def _beside_sinks(a: CausalAttention, lowest: Tensor, empty_is_nan: bool) -> Tensor:
    """What rows without keys get: any sink that is not -inf outweighs the lowest number."""
    if a.sink_logits is None:
        return lowest
    no_sink = (a.sink_logits == -torch.inf).view(-1, 1, 1)
    return lowest * no_sink if empty_is_nan else torch.where(no_sink, lowest, 0)


def _repeated(a: CausalAttention, x: Tensor) -> Tensor:
    """Heads of keys or values, one for each of the query's."""
    group = a.query.shape[1] // a.key.shape[1]
    return x if group == 1 else x.repeat_interleave(group, 1)
