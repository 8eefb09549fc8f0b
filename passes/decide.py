"""What becomes of one attention: sampled, exact or kept.

============  =======================================================================  ==============
outcome       when                                                                     form
============  =======================================================================  ==============
sampled       inference, no dropout, mask proven causal (offset and key                "sampled"
              padding allowed), q_len >= min_seq_len or in a range that the profile
              tuned, dtype and head_dim that the kernels take
sampled       the same, at an offset that is read when the graph runs                  "late"
sampled       under a bool mask of unknown entries or a float mask from outside of     "late"
              the graph, if the mask, read when the graph runs, is causal with offset
              and padding (with a window too: exact); else the same attention with
              the mask
sampled       flex_attention under a causal mask_mod, if its block lists, read when    "late"
              the graph runs, are that mask's; else exactly the listed blocks
exact         proven causal from the first key, nothing else masked (training too)     "sdpa_causal"
exact         SDPA, proven that nothing is masked, and a bool mask or repeats go away  "sdpa_full"
exact         decode (one row) that sees every key, and a mask or repeats go away      "sdpa_full"
exact         any other proven causal mask (window, chunk, packed, padded, offset),    "block_sparse"
              no gradient
exact         SDPA as cheap as it can be already: the graph is not touched             "unchanged"
exact         few rows on a CPU (``few_rows``), which the block-sparse op makes dearer  "unchanged"
kept          everything else, with the reason                                         ""
============  =======================================================================  ==============

Where the block-sparse op has no fast kernel (device, dtype, head_dim), nothing takes it: an attention that
does not become SDPA stays as it was. Nothing with sinks becomes SDPA, which has none.

Every comparison of a symbolic length adds a guard, so that each side of it gets a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels import ops

from .conditions.block_lists import why_as_listed
from .conditions.few_rows import cheaper_below, decode_stays
from .conditions.kernels import why_no_kernel, why_not_dtypes
from .conditions.length_range import settings_for
from .conditions.training import Training
from .graph.declared_ranges import RangeUndecided, evaluate, in_declared_range
from .graph.nodes import fake_mode, number, shape, value
from .graph.sizes import as_expr, fixed
from .mask.predicate import LateMask, MaskPredicate, NotProven
from .site import AttentionSite

# Of SDPA's kernels on CUDA only FlashAttention and cuDNN know grouped heads; wider heads get a score matrix.
_FLASH_HEAD_DIM = 256
_DECLARED = "a length's range is declared (mark_dynamic with min and max)"


@dataclass(frozen=True)
class Decision:
    """The outcome for one site: ``outcome`` is "sampled", "exact" or "kept"; ``form`` is one of the table
    above.

    ``config`` holds the options of the profile's range, ``profile_range`` names it, where one applies.
    """

    outcome: str
    form: str
    reason: str
    config: SampleAttentionConfig | None = None
    profile_range: str = ""

    @property
    def rewrites(self) -> bool:
        """The graph changes."""
        return self.form not in ("", "unchanged")


@dataclass(frozen=True)
class Outlook:
    """Of a causal attention: the decision that samples it, or ``why`` it is not sampled.

    ``blocked``: why the block-sparse op can not take it at all, sampled or exact.
    """

    sampled: Decision | None
    why: str = ""
    blocked: str | None = None
    profile_range: str = ""


def outlook(
    config: SampleAttentionConfig,
    q_len: sympy.Expr,
    holds: Callable[[sympy.Basic], bool],
    *,
    not_plain: str | None,
    training: Training | None,
    why_blocked: Callable[[SampleAttentionConfig], str | None],
    fits: sympy.Basic,
) -> Outlook:
    """Whether a causal attention is sampled, for a graph and for a call alike.

    ``not_plain``: what its mask has beside causality, offset and padding; ``why_blocked``: why the
    block-sparse op can not take it under these options; ``fits``: its rows do not reach past the keys.
    ``holds`` answers a condition on sizes, and is asked only where that matters: an answer may cost a guard.
    """
    blocked = why_blocked(config)
    if blocked is not None or not_plain is not None:
        return Outlook(None, blocked or not_plain or "", blocked)
    if training is not None:
        return Outlook(None, training.reason)
    chosen = settings_for(config, q_len, holds)
    if chosen.exact:
        return Outlook(None, chosen.reason, None, chosen.profile_range)
    blocked = why_blocked(chosen.config)
    if blocked is not None or not holds(fits):
        why = blocked or "queries reach past the keys"
        return Outlook(None, why, blocked, chosen.profile_range)
    return Outlook(Decision("sampled", "sampled", chosen.reason, chosen.config, chosen.profile_range))


def decide(
    site: AttentionSite,
    mask: MaskPredicate | LateMask | NotProven,
    config: SampleAttentionConfig,
    training: Callable[[], Training | None],
    device: str | None = None,
) -> Decision:
    """Choose by the table in this module's docstring.

    ``training`` says whether the site is part of a training step; it is asked only where that matters.
    ``device``: type of the device ("cpu", "cuda"); it decides whether SDPA has a fused kernel for grouped
    heads.
    """
    reason = _why_kept(site, mask)
    if reason is not None:
        return _kept(reason)
    assert not isinstance(mask, NotProven)
    try:
        if isinstance(mask, LateMask):
            return _late_mask(site, mask, config, training, device)
        return _decide_proven(site, mask, config, training, device)
    except GuardOnDataDependentSymNode:
        return _kept("a length depends on data")
    except RangeUndecided as why:
        return _kept(str(why))


def _decide_proven(
    site: AttentionSite,
    mask: MaskPredicate,
    config: SampleAttentionConfig,
    training: Callable[[], Training | None],
    device: str | None,
) -> Decision:
    sizes = _Sizes(site)
    if site.lists is not None:
        return _listed(site, mask, sizes, config, training, device)
    if sizes.holds(sympy.Eq(sizes.q_len, 1)):
        return _decode(site, mask, sizes, device)
    if mask.is_full:
        return _full(site, device)
    if not mask.causal:
        return _kept("bidirectional attention with a mask")
    if mask.start is not None:
        return _late_offset(site, mask, sizes, config, training, device)
    return _causal(site, mask, sizes, config, training(), device)


class _Sizes:
    """The lengths of a site, and questions about them that a guard answers.

    A question that no guard may answer raises ``RangeUndecided``.
    """

    def __init__(self, site: AttentionSite) -> None:
        self.q_len = as_expr(shape(site.query)[2])
        self.kv_len = as_expr(shape(site.key)[2])
        self._shape_env = fake_mode(site.output).shape_env

    def holds(self, condition: sympy.Basic) -> bool:
        """Whether a condition on sizes is true; a guard keeps it so."""
        if condition in (sympy.true, True):
            return True
        if condition in (sympy.false, False):
            return False
        assert self._shape_env is not None
        return evaluate(self._shape_env, condition)

    @property
    def declared(self) -> bool:
        """The caller declared the range of a length."""
        return in_declared_range(self._shape_env, self.q_len, self.kv_len)


def _kept(reason: str) -> Decision:
    return Decision("kept", "", reason)


def _exact(form: str, reason: str) -> Decision:
    return Decision("exact", form, reason)


def _why_kept(site: AttentionSite, mask: MaskPredicate | LateMask | NotProven) -> str | None:
    """What rules out any rewrite of this site."""
    if site.obstacle is not None:
        return site.obstacle
    dropout = number(site.dropout_p)
    if dropout is None or dropout > 0.0:
        return f"dropout in training (p = {site.dropout_p})"
    if isinstance(mask, NotProven):
        return f"mask not proven: {mask}"
    return why_not_dtypes(value(x).dtype for x in (site.query, site.key, site.value))


def _decode(site: AttentionSite, mask: MaskPredicate, sizes: _Sizes, device: str | None) -> Decision:
    sees_all_keys = mask.is_full or (
        _nothing_but_causal(mask) and sizes.holds(sympy.Ge(mask.q_offset, sizes.kv_len - 1))
    )
    gains = _gains(site) and not (device == "cpu" and decode_stays(site))
    if sees_all_keys and gains and _sdpa_is_fused(site, device):
        return _exact("sdpa_full", "decode: one query row that sees every key")
    return _kept("decode: one query row")


def _full(site: AttentionSite, device: str | None) -> Decision:
    """Encoders and cross attention stay bit for bit what they were, unless SDPA can simply drop an
    argument."""
    bool_mask = site.mask is not None and value(site.mask).dtype == torch.bool
    if site.spelling == "sdpa" and (bool_mask or site.repeats) and _sdpa_is_fused(site, device):
        return _exact("sdpa_full", "the mask masks nothing" if site.mask else "repeated heads removed")
    return _kept("bidirectional attention, nothing masked")


def _gains(site: AttentionSite) -> bool:
    return site.mask is not None or site.repeats


def _causal(
    site: AttentionSite,
    mask: MaskPredicate,
    sizes: _Sizes,
    config: SampleAttentionConfig,
    training: Training | None,
    device: str | None,
) -> Decision:
    offset = mask.q_offset
    if not sizes.holds(sympy.Ge(offset, 0)):
        return _kept(f"causal offset {offset} is negative: the first rows see no key")
    first_rows = _kept_for_empty_rows(site, mask)
    if first_rows is not None:
        return _kept(first_rows)
    if training is not None and training.tangent:
        return _kept(training.reason)
    found = outlook(
        config,
        sizes.q_len,
        sizes.holds,
        not_plain=None if mask.is_plain_causal else f"not plain causal: {mask}",
        training=training,
        why_blocked=lambda options: _why_not_block_sparse(site, mask, sizes, options, training, device),
        fits=sympy.Le(offset + sizes.q_len, sizes.kv_len),
    )
    if found.sampled is not None:
        return found.sampled
    decision = _exact_causal(site, mask, sizes, found.why, found.blocked, device)
    return replace(decision, profile_range=found.profile_range)


def _exact_causal(
    site: AttentionSite, mask: MaskPredicate, sizes: _Sizes, why: str, blocked: str | None, device: str | None
) -> Decision:
    plain = site.sinks is None and _nothing_but_causal(mask)
    if plain and sizes.holds(sympy.Eq(mask.q_offset, 0)):
        if site.spelling == "sdpa" and not _gains(site):
            return _exact("unchanged", f"already the cheapest exact form; {why}")
        # Kernels of SDPA that look for a row's largest product before they scale it make NaN of such rows.
        if isinstance(site.scale, float) and site.scale <= 0.0:
            return _kept(f"{why}; SDPA's is_causal is not right at a scale of {site.scale}")
        if _sdpa_is_fused(site, device) or blocked is not None and _native_heads(site):
            return _exact("sdpa_causal", why)
    if blocked is not None:
        return _kept(blocked if blocked == why else f"{why}; {blocked}")
    if device == "cpu" and mask.is_plain_causal and _has_few_rows(site, sizes):
        return _exact("unchanged", f"few query rows: as captured it is cheaper on a CPU; {why}")
    return _exact("block_sparse", why)


def _has_few_rows(site: AttentionSite, sizes: _Sizes) -> bool:
    """Too few for the block-sparse op to pay. Lengths whose range the caller declared get no guard for it."""
    limit = cheaper_below(site)
    return limit > 2 and not sizes.declared and sizes.holds(sympy.Lt(sizes.q_len, limit))


def _nothing_but_causal(mask: MaskPredicate) -> bool:
    return mask.is_plain_causal and mask.key_valid is None and mask.start is None


def _late_offset(
    site: AttentionSite,
    mask: MaskPredicate,
    sizes: _Sizes,
    config: SampleAttentionConfig,
    training: Callable[[], Training | None],
    device: str | None,
) -> Decision:
    """Proven, but for a number that causality starts at: what is not sampled stays as it was."""
    unknown = "its causal offset is known only when it runs"
    why = _kept_for_empty_rows(site, mask)
    if why is None and mask.may_have_empty_rows and mask.masked_value == "finfo.min":
        why = f"rows without keys are the mean of all values, and {unknown}"
    if why is None and not mask.is_plain_causal:
        why = f"not plain causal: {mask}"
    if why is not None:
        return _kept(why)
    return _late(site, sizes, config, training, device, unknown)


def _late_mask(
    site: AttentionSite,
    mask: LateMask,
    config: SampleAttentionConfig,
    training: Callable[[], Training | None],
    device: str | None,
) -> Decision:
    """Not proven: long prompts are sampled if what the graph reads, when it runs, allows it."""
    sizes = _Sizes(site)
    if sizes.holds(sympy.Eq(sizes.q_len, 1)):
        return _kept("decode: one query row")
    decision = _late(
        site, sizes, config, training, device, "if the mask, read when it runs, is causal without a window"
    )
    if decision.outcome == "kept":
        return _kept(f"mask not proven: {mask.not_proven}; {decision.reason}")
    return decision


def _listed(
    site: AttentionSite,
    mask: MaskPredicate,
    sizes: _Sizes,
    config: SampleAttentionConfig,
    training: Callable[[], Training | None],
    device: str | None,
) -> Decision:
    """Proven, but for the blocks that are computed at all: what is not sampled stays as it was."""
    why = why_as_listed(mask, sizes.q_len, sizes.kv_len, sizes.holds)
    if why is not None:
        return _kept(why)
    condition = "if its block lists, read when it runs, are those of its mask_mod"
    return _late(site, sizes, config, training, device, condition)


def _late(
    site: AttentionSite,
    sizes: _Sizes,
    config: SampleAttentionConfig,
    training: Callable[[], Training | None],
    device: str | None,
    condition: str,
) -> Decision:
    """Sampled, if the prompt is long enough; ``condition``: what is known only when the graph runs."""
    step = training()
    if step is not None or sizes.declared:
        return _kept(step.reason if step is not None else _DECLARED)
    chosen = settings_for(config, sizes.q_len, sizes.holds)
    dims, dtype = _head_dims(site), value(site.query).dtype
    why = chosen.reason if chosen.exact else None
    why = why or why_no_kernel(torch.device(device or "cpu"), dtype, *dims, chosen.config)
    if why is not None:
        return _kept(f"{why}; {condition}")
    return Decision("sampled", "late", f"{chosen.reason}; {condition}", chosen.config, chosen.profile_range)


def _kept_for_empty_rows(site: AttentionSite, mask: MaskPredicate) -> str | None:
    """Rows without keys are zero in the ops and may be the mean of all values; NaN and fp16's mean are not
    rebuilt."""
    if not mask.may_have_empty_rows:
        return None
    if mask.masked_value == "finfo.min":
        if site.mask is not None and value(site.mask).dtype == torch.float16:
            return "rows without keys: under fp16 finfo.min they depend on the scores"
        return None
    if site.softmax_empty_rows == "softmax":
        return "rows without keys: softmax over -inf gives NaN there"
    return None


def _why_not_block_sparse(
    site: AttentionSite,
    mask: MaskPredicate,
    sizes: _Sizes,
    config: SampleAttentionConfig,
    training: Training | None,
    device: str | None,
) -> str | None:
    if training is not None and training.gradient:
        return training.reason
    if sizes.declared:
        return _DECLARED
    if mask.segments is not None and mask.chunk is not None:
        return "packed sequences and chunks together"
    dtype, dims = value(site.query).dtype, _head_dims(site)
    return why_no_kernel(torch.device(device or "cpu"), dtype, *dims, config)


def block_sparse_kernel(site: AttentionSite, config: SampleAttentionConfig, device: str | None) -> str:
    """What the block-sparse op runs for this site (``ops.attention_kernel``)."""
    where, dtype = torch.device(device or "cpu"), value(site.query).dtype
    return ops.attention_kernel(where, dtype, *_head_dims(site), config.block_q, config.block_k)


def _head_dims(site: AttentionSite) -> tuple[int, int]:
    """Of query and key, and of value."""
    return fixed(shape(site.query)[3]), fixed(shape(site.value)[3])


def _native_heads(site: AttentionSite) -> bool:
    return bool(shape(site.query)[1] == shape(site.key)[1])


def _sdpa_is_fused(site: AttentionSite, device: str | None) -> bool:
    """SDPA has a kernel that makes no score matrix and repeats no heads for this site."""
    if site.sinks is not None:
        return False
    if device == "cpu":
        return bool(shape(site.query)[3] == shape(site.value)[3])
    if _native_heads(site):
        return True
    head_dim, value_head_dim = shape(site.query)[3], shape(site.value)[3]
    half = value(site.query).dtype in (torch.bfloat16, torch.float16)
    return half and bool(head_dim == value_head_dim) and bool(head_dim <= _FLASH_HEAD_DIM)
