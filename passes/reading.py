"""When tensors are read: a rewrite reads query, key and value later than the captured graph did."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from .mask.scan import GraphScan
from .products import NotUnderstood


class Reading:
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
        self, first_read: fx.Node, output: fx.Node, operands: Iterable[tuple[fx.Node, fx.Node]]
    ) -> None:
        """Raises ``NotUnderstood`` if an operand is written to between its first reading and ``output``.

        ``operands``: what the captured graph reads, and the tensor behind it that the rewrite reads instead.
        """
        for as_read, source in operands:
            source = self._captured(source)
            start = first_read
            node = self._captured(as_read)
            while node is not source and node.args and isinstance(node.args[0], fx.Node):
                start = min(start, node)
                node = node.args[0]
            for writer, _ in self.mutations.between(source, output):
                if writer > start:
                    raise NotUnderstood(f"{source} is changed in place by {writer} before the attention ends")

    def _captured(self, node: fx.Node) -> fx.Node:
        """The node itself, or what the view that a matcher added looks at."""
        while node not in self.captured:
            node = node.all_input_nodes[0]
        return node
