"""The order of the passes, and nothing else.

match -> prove the mask -> decide -> rewrite -> dead code away, on a Dynamo graph before Inductor; child
graph modules first, since a mask that a child no longer needs is dead in its parent. A pass reads what those
before it noted in the work (``work.py``) and notes its own part there. Each has a name in the trace
(``pass_log.py``).
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import fx
from torch._dynamo.utils import _disable_saved_tensors_hooks_during_tracing

from sa_compile.config import SampleAttentionConfig

from .conditions.dynamo_frame import Frame
from .decide import Decision
from .decide import decide as decide_by_table
from .graph.nodes import value
from .graph.operations import label
from .graph.scan import GraphScan
from .graph.sizes import SizeNotAvailable
from .mask.predicate import NotProven
from .mask.prove import prove_mask
from .mask.readable import readable, unread
from .match import find_sites
from .pass_log import PassLog, a_pass
from .rewrite.dead_code import remove_unused
from .rewrite.forms import write
from .rewrite.outputs import add_outputs
from .rewrite.score_tensors import score_shaped_nodes
from .site_record import SiteRecord, record_of
from .subgraphs import MaskFromParent, children, prove_in_parent, regions
from .work import GraphWork, SiteWork

__all__ = ["SiteRecord", "run"]


def run(gm: fx.GraphModule, config: SampleAttentionConfig, log: PassLog | None = None) -> list[SiteRecord]:
    """Rewrite every attention of ``gm`` and its children in place as ``config`` says; one record a site.

    ``log`` notes which passes ran.
    """
    log = log or PassLog()
    # Example values are computed on the way: a checkpoint around the compiled code must not count them.
    with _disable_saved_tensors_hooks_during_tracing():
        work = GraphWork(gm, config, Frame(), log, torch.is_grad_enabled())
        _run(work)
    log.emit()
    return work.records


def _run(work: GraphWork) -> None:
    """All passes over one graph module, in order."""
    scan(work)
    subgraphs(work)
    match(work)
    for site in work.sites:  # one after the other: the guards that one adds are known to the next
        one = SiteWork(site.with_nodes(work.replaced_by))
        prove(work, one)
        decide(work, one)
        rewrite(work, one)
        record(work, one)
    outputs(work)
    clean_up(work)


@a_pass
def scan(work: GraphWork) -> None:
    """Ask of the whole graph what is asked once."""
    work.begin()


@a_pass
def subgraphs(work: GraphWork) -> None:
    """The same passes over the graph modules that this graph calls; rows of those that are left alone."""
    opened = set()
    for child in children(work.scan):
        opened.add(child.graph_module)
        recording = any(call in work.recording for call in child.calls)
        inner = GraphWork(child.graph_module, work.config, work.frame, work.log, recording, child)
        _run(inner)
        work.records += inner.records
        work.unread += inner.dropped
    work.records += _closed(work.scan, work.config, opened)


@a_pass
def match(work: GraphWork) -> None:
    """Find the attentions, whatever they are spelt like."""
    work.sites = find_sites(work.scan)


@a_pass
def prove(work: GraphWork, one: SiteWork) -> None:
    """What the mask means: proven here, or where it comes from, or to be read when the graph runs."""
    site = one.site
    if site.obstacle is not None:
        one.mask = NotProven(site.obstacle, site.output)
        return
    if site.lists is not None and work.child is not None:
        one.mask = NotProven("block lists are not read in a graph module that another one calls", site.output)
        return
    one.mask = prove_mask(site, work.scan)
    if not isinstance(one.mask, NotProven):
        return
    if work.child is None:
        one.mask = readable(site, one.mask, work.scan)
        return
    proven = prove_in_parent(site, work.child, prove_mask)
    one.from_parent = proven if isinstance(proven, MaskFromParent) else None
    if isinstance(proven, MaskFromParent):
        one.mask = proven.predicate
    else:
        one.mask = unread(proven, "it is in a graph module that another one calls")


@a_pass
def decide(work: GraphWork, one: SiteWork) -> None:
    """sampled, exact or kept."""
    device = value(one.site.output).device.type
    training = work.training
    one.decision = decide_by_table(one.site, one.mask, work.config, lambda: training(one.site), device)


@a_pass
def rewrite(work: GraphWork, one: SiteWork) -> None:
    """Write what was decided in front of the attention, for its readers to read."""
    if not one.decision.rewrites:
        return
    assert not isinstance(one.mask, NotProven)
    predicate = one.from_parent.hand_over() if one.from_parent else one.mask
    config = one.decision.config or work.config
    collect_stats = config.stats and work.child is None
    try:
        one.written = write(one.site, predicate, one.decision, config, work.shared, collect_stats)
    except SizeNotAvailable as error:
        one.decision = Decision("kept", "", str(error))
        return
    work.replaced += one.site.covered
    work.replaced_by[one.site.output] = one.written.out
    work.scan.mutations.replaced(one.site.output, one.written.out)


@a_pass
def record(work: GraphWork, one: SiteWork) -> None:
    """The attention's row of the report, and what the graph gives out for it."""
    has_stats, mask_read = work.note_outputs(one.written)
    config = one.decision.config or work.config
    work.records.append(record_of(one.site, one.mask, one.decision, config, has_stats, mask_read))


@a_pass
def outputs(work: GraphWork) -> None:
    """Stats, and what was read of masks, behind the captured outputs."""
    if work.stats or work.found:
        add_outputs(work.gm.graph, [*work.stats, *work.found])


@a_pass
def clean_up(work: GraphWork) -> None:
    """What nobody reads any more goes, from the graph and from what it hands to its child graphs."""
    graph = work.gm.graph
    added = [node for node in graph.nodes if node not in work.scan.captured]
    # Masks that Dynamo captured and no layer reads are as large as those that some layer reads.
    masks = [node for node in score_shaped_nodes(work.gm, work.records) if node.graph is graph]
    remove_unused(graph, work.replaced, [*work.unread, *added, *masks])
    changed = any(record.rewritten for record in work.records)
    if changed and work.child is not None:
        work.dropped = work.child.drop_inputs(work.read_inputs)
    if changed:
        graph.lint()
        work.gm.recompile()


def _closed(
    scan: GraphScan,
    config: SampleAttentionConfig,
    opened: Container[fx.GraphModule] = (),
    inside: str | None = None,
) -> list[SiteRecord]:
    """Rows of the attentions in graph modules that are left alone: branches of ``torch.cond``, loops, ..."""
    records = []
    for module, call in regions(scan):
        if module in opened:
            continue
        around = inside or label(call)
        inner = GraphScan(module, (scan, call), inside=around)
        for site in find_sites(inner):
            reason = site.obstacle or f"inside {around}"
            decision = Decision("kept", "", reason)
            records.append(record_of(site, NotProven(reason, site.output), decision, config))
        remove_unused(module.graph, (), [node for node in module.graph.nodes if node not in inner.captured])
        records += _closed(inner, config, inside=around)
    return records
