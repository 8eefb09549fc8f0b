"""What became of one attention, as plain data for the report."""

from __future__ import annotations

from dataclasses import dataclass

from sa_compile.config import SampleAttentionConfig

from .decide import Decision, block_sparse_kernel
from .graph.nodes import is_tensor, rank, shape, value
from .graph.sizes import plain
from .mask.predicate import LateMask, MaskPredicate, NotProven
from .site import AttentionSite

_BLOCK_SPARSE = ("sampled", "late", "block_sparse")
_SDPA = ("sdpa_causal", "sdpa_full")


@dataclass(frozen=True)
class SiteRecord:
    """One row of the report. Sizes are ints, text if symbolic, "?" where the spelling is not understood (the
    lengths are known even then, where attention is written out)."""

    module_path: str
    spelling: str
    batch: int | str
    q_heads: int | str
    kv_heads: int | str
    head_dim: int | str
    q_len: int | str
    kv_len: int | str
    dtype: str
    mask: str
    outcome: str  # "sampled", "exact" or "kept"
    form: str  # see decide.py
    reason: str
    kernel: str  # of the block-sparse op (kernels/choice.py), or "sdpa"; "" if it was left as it was
    has_stats: bool = False  # the graph has an output for this site's stats (rewrite/stats.py)
    value_head_dim: int | str = "?"
    profile_range: str = ""  # the range of the tuned profile that it took its settings from
    mask_read: int | None = (
        None  # which of the masks that the graph reads, and says what they are (rewrite/outputs.py)
    )

    @property
    def rewritten(self) -> bool:
        """This attention is not what Dynamo captured any more."""
        return self.form not in ("", "unchanged")


def record_of(
    site: AttentionSite,
    mask: MaskPredicate | LateMask | NotProven,
    decision: Decision,
    config: SampleAttentionConfig,
    has_stats: bool = False,
    mask_read: int | None = None,
) -> SiteRecord:
    """The row of one site."""
    batch: int | str = "?"
    q_heads, kv_heads, head_dim, value_head_dim, q_len, kv_len = [batch] * 6
    if all(is_tensor(x) and rank(x) == 4 for x in (site.query, site.key, site.value)) and not site.obstacle:
        batch, q_heads, q_len, head_dim = map(plain, shape(site.query))
        kv_heads, kv_len, value_head_dim = map(plain, (*shape(site.key)[1:3], shape(site.value)[3]))
    elif site.rows_and_keys is not None:
        q_len, kv_len = map(plain, site.rows_and_keys)
    return SiteRecord(
        site.module_path,
        site.spelling,
        batch=batch,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_len=q_len,
        kv_len=kv_len,
        dtype=str(value(site.output).dtype).removeprefix("torch."),
        mask=_mask_text(site, mask, decision),
        outcome=decision.outcome,
        form=decision.form,
        reason=decision.reason,
        kernel=_kernel(site, decision, config),
        has_stats=has_stats,
        value_head_dim=value_head_dim,
        profile_range=decision.profile_range,
        mask_read=mask_read,
    )


def _kernel(site: AttentionSite, decision: Decision, config: SampleAttentionConfig) -> str:
    if decision.form in _BLOCK_SPARSE:
        return block_sparse_kernel(site, config, value(site.output).device.type)
    return "sdpa" if decision.form in _SDPA else ""


def _mask_text(site: AttentionSite, mask: MaskPredicate | LateMask | NotProven, decision: Decision) -> str:
    if isinstance(mask, MaskPredicate):
        return str(mask)
    if isinstance(mask, LateMask) and decision.rewrites:
        return "read when it runs"
    return "not looked at" if site.obstacle is not None else "not proven"
