"""The order of the passes, and nothing else.

match -> prove the mask -> decide -> rewrite -> dead code away, on a Dynamo graph before Inductor; child
graph modules first, since a mask that a child no longer needs is dead in its parent.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import fx
from torch._dynamo.utils import _disable_saved_tensors_hooks_during_tracing

from sa_compile.config import SampleAttentionConfig

from . import match_eager, match_opaque, match_sdpa
from .children import Child, MaskFromParent, children, prove_in_parent, regions
from .dead_code import remove_unused
from .decide import Decision, decide
from .frame import Frame
from .fx_utils import value
from .graph.operations import label
from .invariants import score_shaped_nodes
from .late import readable
from .mask.predicate import LateMask, MaskPredicate, NotProven
from .mask.prove import prove_mask
from .mask.scan import GraphScan
from .outputs import add_outputs
from .record import SiteRecord, record
from .rewrite import SharedNodes, Written, rewrite
from .site import AttentionSite
from .sizes import SizeNotAvailable
from .training import Training, hidden_sign, recording_nodes, training_step

__all__ = ["SiteRecord", "run"]


def run(gm: fx.GraphModule, config: SampleAttentionConfig) -> list[SiteRecord]:
    """Rewrite every attention of ``gm`` and its children in place as ``config`` says; one record a site."""
    # Example values are computed on the way: a checkpoint around the compiled code must not count them.
    with _disable_saved_tensors_hooks_during_tracing():
        return _Run(gm, config, Frame(), recording=torch.is_grad_enabled()).records


class _Run:
    """One graph module on its way through the passes."""

    def __init__(
        self,
        gm: fx.GraphModule,
        config: SampleAttentionConfig,
        frame: Frame,
        recording: bool,
        child: Child | None = None,
    ) -> None:
        self.gm = gm
        self.config = config
        self.frame = frame
        self.child = child
        self.recording = recording_nodes(gm.graph, recording)
        self.records: list[SiteRecord] = []
        self.shared = SharedNodes()
        self.stats: list[fx.Node] = []
        self.found: list[fx.Node] = []  # of the masks that are read when the graph runs, one each
        self.replaced_by: dict[fx.Node, fx.Node] = {}
        self.scan = GraphScan(gm, (child.parent, child.calls[0]) if child is not None else None)
        read_inputs = [node for node in gm.graph.find_nodes(op="placeholder") if node.users]
        unread = self._children()
        replaced = [node for site in self._sites() for node in self._one(site)]
        changed = any(record.rewritten for record in self.records)
        unread += [
            *(node for node in gm.graph.nodes if node not in self.scan.captured),
            *self._score_shaped(),
        ]
        if self.stats or self.found:
            add_outputs(gm.graph, [*self.stats, *self.found])
        remove_unused(gm.graph, replaced, unread)
        self.dropped = child.drop_inputs(read_inputs) if child and changed else []
        if changed:
            gm.graph.lint()
            gm.recompile()

    def _children(self) -> list[fx.Node]:
        """Rewrite the child graph modules; operands that they no longer take."""
        dropped, opened = [], set()
        for child in children(self.scan):
            opened.add(child.graph_module)
            recording = any(call in self.recording for call in child.calls)
            done = _Run(child.graph_module, self.config, self.frame, recording, child)
            self.records += done.records
            dropped += done.dropped
        self.records += _closed(self.scan, self.config, opened)
        return dropped

    def _score_shaped(self) -> list[fx.Node]:
        """Masks that Dynamo captured and no layer reads are as large as those that some layer reads."""
        return [node for node in score_shaped_nodes(self.gm, self.records) if node.graph is self.gm.graph]

    def _sites(self) -> list[AttentionSite]:
        return _find(self.scan)

    def _one(self, site: AttentionSite) -> list[fx.Node]:
        """Prove, decide, rewrite; the nodes that the rewrite replaced."""
        site = site.with_nodes(self.replaced_by)
        mask, from_parent = self._prove(site)
        device = value(site.output).device.type
        decision = decide(site, mask, self.config, lambda: self._training(site), device)
        config = decision.config or self.config
        written = None
        if decision.rewrites:
            assert not isinstance(mask, NotProven)
            predicate = from_parent.hand_over() if from_parent else mask
            collect_stats = config.stats and self.child is None
            try:
                written = rewrite(site, predicate, decision, config, self.shared, collect_stats)
                self.replaced_by[site.output] = written.out
                self.scan.mutations.replaced(site.output, written.out)
            except SizeNotAvailable as error:
                decision = Decision("kept", "", str(error))
        has_stats, mask_read = self._outputs(written) if written is not None else (False, None)
        self.records.append(record(site, mask, decision, config, has_stats, mask_read))
        return list(site.covered) if decision.rewrites else []

    def _outputs(self, written: Written) -> tuple[bool, int | None]:
        """Note what the graph gives out for a site: has it stats, and which of the masks it read."""
        if written.stats is not None:
            self.stats.append(written.stats)
        if written.found is not None and written.found not in self.found:
            self.found.append(written.found)
        mask_read = self.found.index(written.found) if written.found is not None else None
        return written.stats is not None, mask_read

    def _training(self, site: AttentionSite) -> Training | None:
        return training_step(
            gradient=value(site.output).requires_grad,
            recording=site.output in self.recording,
            hidden=lambda: self.frame.answer(hidden_sign),
            module_trains=lambda: self.frame.module_trains(site.output),
        )

    def _prove(
        self, site: AttentionSite
    ) -> tuple[MaskPredicate | LateMask | NotProven, MaskFromParent | None]:
        if site.obstacle is not None:
            return NotProven(site.obstacle, site.output), None
        mask = prove_mask(site, self.scan)
        if isinstance(mask, NotProven) and self.child is not None:
            proven = prove_in_parent(site, self.child, prove_mask)
            if isinstance(proven, MaskFromParent):
                return proven.predicate, proven
            return proven, None
        return (readable(site, mask, self.scan) if isinstance(mask, NotProven) else mask), None


def _find(scan: GraphScan) -> list[AttentionSite]:
    sites = [*match_sdpa.find(scan), *match_eager.find(scan), *match_opaque.find(scan)]
    return sorted(sites, key=lambda site: site.output)


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
        for site in _find(inner):
            reason = site.obstacle or f"inside {around}"
            decision = Decision("kept", "", reason)
            records.append(record(site, NotProven(reason, site.output), decision, config))
        remove_unused(module.graph, (), [node for node in module.graph.nodes if node not in inner.captured])
        records += _closed(inner, config, inside=around)
    return records
