"""Which nodes of a graph write into tensors, and which tensors share memory.

Dynamo's graphs are not functional: the value of a node depends on when it is read. Matchers and the prover
ask here which in-place operations lie between the creation of a tensor and its reading.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import fx

from .nodes import tensor_of
from .operations import calls
from .writes import storage, written_arguments

_MAKES_MEMORY = (
    *("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "clone"),
)


class Mutations:
    """The in-place operations of a graph, by the memory they write into."""

    def __init__(self, graph: fx.Graph):
        self._writes: dict[int, list[tuple[fx.Node, fx.Node]]] = defaultdict(list)
        self._unplaced: list[tuple[fx.Node, fx.Node]] = []  # into memory that is not known: perhaps any
        for node in graph.nodes:
            for written in written_arguments(node):
                tensor = tensor_of(written)
                if tensor is None:
                    continue
                memory = storage(tensor)
                if memory is None:
                    self._unplaced.append((node, written))
                else:
                    self._writes[memory].append((node, written))

    def between(self, node: fx.Node, reader: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        """(writing node, written node) after the creation of ``node`` and before ``reader``, in order."""
        tensor = tensor_of(node)
        memory = None if tensor is None else storage(tensor)
        placed = () if memory is None else self._writes.get(memory, ())
        unplaced = (w for w in self._unplaced if not _is_made_after(w[1], node))
        writes = [w for w in (*placed, *unplaced) if node < w[0] < reader]
        return sorted(writes, key=lambda write: write[0]) if self._unplaced else writes

    def replaced(self, old: fx.Node, new: fx.Node) -> None:
        """``new``, a tensor of its own, is read from now on where ``old`` was: so it is written where that
        was."""
        before, after = (None if tensor is None else storage(tensor) for tensor in map(tensor_of, (old, new)))
        if before is None or after is None:
            return
        for writer, written in tuple(self._writes.get(before, ())):
            self._writes[after].append((writer, new if written is old else written))


def _is_made_after(written: fx.Node, node: fx.Node) -> bool:
    """Memory of its own, made when ``node`` had its own already: whatever it is, a write to it is not to
    that."""
    return node < written and calls(written, *_MAKES_MEMORY)


def same_view(left: fx.Node, right: fx.Node) -> bool:
    """Whether two nodes see the same memory through the same sizes and strides."""
    a, b = tensor_of(left), tensor_of(right)
    if a is None or b is None or a.dim() != b.dim() or a.dtype != b.dtype:
        return False

    def layout(t: torch.Tensor) -> list[str]:
        return [str(x) for x in (*t.shape, *t.stride(), t.storage_offset())]

    return storage(a) is not None and storage(a) == storage(b) and layout(a) == layout(b)
