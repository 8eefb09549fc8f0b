"""What the passes know of a graph, and of one attention in it: each pass reads it and adds its part."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from sa_compile.config import SampleAttentionConfig

from .conditions.dynamo_frame import Frame
from .conditions.training import Training, hidden_sign, recording_nodes, training_step
from .decide import Decision
from .graph.nodes import value
from .graph.scan import GraphScan
from .mask.predicate import LateMask, MaskPredicate, NotProven
from .pass_log import PassLog
from .rewrite.forms import SharedNodes, Written
from .site import AttentionSite
from .site_record import SiteRecord
from .subgraphs import Child, MaskFromParent


@dataclass
class GraphWork:
    """One graph module on its way through the passes.

    ``records_gradients``: where the graph begins; ``child``: its calls, if another graph calls it. What
    ``begin`` sets is the graph as captured: ``recording`` holds the nodes at which gradients are recorded.
    """

    gm: fx.GraphModule
    config: SampleAttentionConfig
    frame: Frame
    log: PassLog
    records_gradients: bool
    child: Child | None = None

    scan: GraphScan = field(init=False)
    recording: set[fx.Node] = field(init=False)
    read_inputs: list[fx.Node] = field(init=False)

    sites: list[AttentionSite] = field(default_factory=list)
    records: list[SiteRecord] = field(default_factory=list)
    shared: SharedNodes = field(default_factory=SharedNodes)
    replaced: list[fx.Node] = field(default_factory=list)  # what the rewritten attentions were made of
    replaced_by: dict[fx.Node, fx.Node] = field(default_factory=dict)  # their results, old and new
    stats: list[fx.Node] = field(default_factory=list)
    found: list[fx.Node] = field(default_factory=list)  # of the masks that are read when it runs, one each
    unread: list[fx.Node] = field(default_factory=list)  # operands that child graphs do not take any more
    dropped: list[fx.Node] = field(default_factory=list)  # operands of this graph's calls: the same

    def begin(self) -> None:
        """Look at the graph before any pass changes it."""
        called_from = (self.child.parent, self.child.calls[0]) if self.child is not None else None
        self.scan = GraphScan(self.gm, called_from)
        self.recording = recording_nodes(self.gm.graph, self.records_gradients)
        self.read_inputs = [node for node in self.gm.graph.find_nodes(op="placeholder") if node.users]

    def training(self, site: AttentionSite) -> Training | None:
        """Whether a site is part of a training step."""
        return training_step(
            gradient=value(site.output).requires_grad,
            recording=site.output in self.recording,
            hidden=lambda: self.frame.answer(hidden_sign),
            module_trains=lambda: self.frame.module_trains(site.output),
        )

    def note_outputs(self, written: Written | None) -> tuple[bool, int | None]:
        """Note what the graph gives out for a site: has it stats, and which of the masks it read."""
        if written is None:
            return False, None
        if written.stats is not None:
            self.stats.append(written.stats)
        if written.found is not None and written.found not in self.found:
            self.found.append(written.found)
        mask_read = self.found.index(written.found) if written.found is not None else None
        return written.stats is not None, mask_read


@dataclass
class SiteWork:
    """One attention. ``from_parent``: its mask, where that was proven in the graph that calls this one."""

    site: AttentionSite
    mask: MaskPredicate | LateMask | NotProven = field(init=False)
    from_parent: MaskFromParent | None = None
    decision: Decision = field(init=False)
    written: Written | None = None
