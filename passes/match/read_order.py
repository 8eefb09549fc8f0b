"""When tensors are read: a rewrite reads query, key and value later than the captured graph did."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx

from ..graph.emitter import Emitter
from ..graph.nodes import shape
from ..graph.scan import GraphScan
from .matrix_products import NotUnderstood
from .repeats import unrepeat_pair


class ReadOrder:
    """The order of nodes and the in-place operations of a graph, as captured."""

    def __init__(self, scan: GraphScan) -> None:
        self.mutations = scan.mutations
        self.captured = scan.captured
        self._transforms = scan.transforms

    def obstacle(self, node: fx.Node) -> str | None:
        """Why no attention may be rewritten where ``node`` stands, before anything is read of it."""
        transform = self._transforms.get(node)
        return f"inside {transform}" if transform else None

    def check_only_read_by(self, covered: Iterable[fx.Node], output: fx.Node) -> None:
        """Raises ``NotUnderstood`` if anything outside reads a node that will be gone."""
        inside = set(covered)
        for node in inside:
            if node is output:
                continue
            outside = [reader for reader in node.users if reader not in inside and reader in self.captured]
            if outside:
                raise NotUnderstood(f"{node} is read by {outside[0]} too")

    def check_unchanged(
        self, reads: Iterable[tuple[fx.Node, fx.Node]], covered: Collection[fx.Node], output: fx.Node
    ) -> None:
        """Raises ``NotUnderstood`` if what a captured node reads is not what the rewrite reads at ``output``.

        ``reads``: a captured node, and the tensor that the rewrite reads behind the node's operand: neither
        it may be written to once the operand is being made of it, nor what lies between the two, copies such
        as repeated heads included. ``covered``: nodes of the attention, which are no operands.
        """
        for reader, source in reads:
            source = self._captured(source)
            made = self._made_of(source, reader, covered)
            for node, since in ((source, min((*made, reader))), *zip(made, made, strict=True)):
                for writer, _ in self.mutations.between(node, output):
                    if writer > since:
                        raise NotUnderstood(
                            f"{node} is changed in place by {writer} before the attention ends"
                        )

    def unrepeated(
        self, emitter: Emitter, call: fx.Node, query: fx.Node, key: fx.Node, value: fx.Node
    ) -> tuple[fx.Node, fx.Node, bool]:
        """Key and value of a call before their heads were repeated, unless these were written to since."""
        sources = unrepeat_pair(emitter, key, value, shape(query)[1])
        try:
            self.check_unchanged(((call, source) for source in sources[:2]), (call,), call)
        except NotUnderstood:
            return key, value, False
        return sources

    def _made_of(self, source: fx.Node, reader: fx.Node, covered: Collection[fx.Node]) -> list[fx.Node]:
        """Nodes on a way from ``source`` to an operand of ``reader``."""
        above: set[fx.Node] = set()
        waiting = [reader]
        while waiting:
            for node in waiting.pop().all_input_nodes:
                if node > source and node not in above and node not in covered:
                    above.add(node)
                    waiting.append(node)
        made: list[fx.Node] = []
        for node in sorted(above):
            if any(x is source or x in made for x in node.all_input_nodes):
                made.append(node)
        return made

    def _captured(self, node: fx.Node) -> fx.Node:
        """The node itself, or what the view that a matcher added looks at."""
        while node not in self.captured:
            node = node.all_input_nodes[0]
        return node
