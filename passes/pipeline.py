"""The order of the passes, and nothing else.

match -> prove the mask -> decide -> rewrite -> dead code away, on a Dynamo graph before Inductor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from sa_compile.config import SampleAttentionConfig
from . import match_eager, match_sdpa
from .dead_code import remove_unused
from .decide import Decision, decide, is_training
from .fx_utils import rank, shape, value
from .mask.predicate import MaskPredicate, NotProven
from .mask.prove import prove_mask
from .rewrite import SharedNodes, rewrite
from .site import AttentionSite
from .sizes import SizeNotAvailable, plain


@dataclass(frozen=True)
class SiteRecord:
    """What became of one attention, as plain data for the report; sizes are ints, or text if symbolic."""

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
    kernel: str

    @property
    def rewritten(self) -> bool:
        """The graph is not what Dynamo captured: this attention was replaced."""
        return self.form not in ("", "unchanged")


_KERNELS = {
    "sampled": "sampleattn.block_sparse_attention",
    "block_sparse": "sampleattn.block_sparse_attention",
    "sdpa_causal": "scaled_dot_product_attention",
    "sdpa_full": "scaled_dot_product_attention",
}


def run(gm: fx.GraphModule, config: SampleAttentionConfig) -> list[SiteRecord]:
    """Rewrite every attention of ``gm`` in place as ``config`` says; one record a site, in graph order."""
    captured = set(gm.graph.nodes)
    shared = SharedNodes()
    records, replaced = [], []
    position = {node: number for number, node in enumerate(gm.graph.nodes)}
    sites = [*match_sdpa.find(gm), *match_eager.find(gm)]
    for site in sorted(sites, key=lambda site: position[site.output]):
        mask = prove_mask(site, gm)
        decision = decide(site, mask, config, is_training(site), value(site.output).device.type)
        if decision.rewrites:
            decision = _rewrite_or_keep(gm, site, mask, decision, config, shared)
        if decision.rewrites:
            replaced.extend(site.covered)
        records.append(_record(site, mask, decision))
    remove_unused(gm.graph, [*replaced, *(node for node in gm.graph.nodes if node not in captured)])
    if replaced:
        gm.graph.lint()
        gm.recompile()
    return records


def _rewrite_or_keep(
    gm: fx.GraphModule,
    site: AttentionSite,
    mask: MaskPredicate | NotProven,
    decision: Decision,
    config: SampleAttentionConfig,
    shared: SharedNodes,
) -> Decision:
    assert isinstance(mask, MaskPredicate)
    try:
        rewrite(gm, site, mask, decision, config, shared)
    except SizeNotAvailable as error:
        return Decision("kept", "", str(error))
    return decision


def _record(site: AttentionSite, mask: MaskPredicate | NotProven, decision: Decision) -> SiteRecord:
    sizes: list[int | str] = ["?"] * 6
    if all(
        isinstance(x, fx.Node) and isinstance(value(x), torch.Tensor) and rank(x) == 4
        for x in (site.query, site.key)
    ):
        batch, q_heads, q_len, head_dim = map(plain, shape(site.query))
        sizes = [batch, q_heads, plain(shape(site.key)[1]), head_dim, q_len, plain(shape(site.key)[2])]
    return SiteRecord(
        site.module_path,
        site.spelling,
        *sizes,
        dtype=str(value(site.output).dtype).removeprefix("torch."),
        mask=str(mask),
        outcome=decision.outcome,
        form=decision.form,
        reason=decision.reason,
        kernel=_KERNELS.get(decision.form, ""),
    )
