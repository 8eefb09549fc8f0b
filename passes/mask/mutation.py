"""Which nodes of a graph write into tensors, and which tensors share memory.

Dynamo's graphs are not functional: the value of a node depends on when it is read. The interpreter asks here
which in-place operations lie between the creation of a tensor and its reading.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

import torch
from torch import fx

_INPLACE_OPERATORS = {
    getattr(operator, "i" + name)
    for name in ("add", "and", "concat", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow", "rshift")
} | {operator.isub, operator.itruediv, operator.ixor, operator.setitem, operator.delitem}


def tensor_of(node: Any) -> torch.Tensor | None:
    """The example value of a node if it is a tensor, else None."""
    if not isinstance(node, fx.Node):
        return None
    value = node.meta.get("example_value", node.meta.get("val"))
    return value if isinstance(value, torch.Tensor) else None


def written_arguments(node: fx.Node) -> list[fx.Node]:
    """The argument nodes that this node writes into."""
    written: list[Any] = []
    out = node.kwargs.get("out")
    written.extend(out if isinstance(out, list | tuple) else [out])
    if node.op == "call_method":
        name = str(node.target)
        if (
            name in ("__setitem__", "set_")
            or (name.endswith("_") and not name.endswith("__"))
            or name.startswith("__i")
            and name.endswith("__")
            and name not in ("__invert__", "__index__")
        ):
            written.append(node.args[0])
    elif node.op == "call_function":
        if isinstance(node.target, torch._ops.OpOverload):
            for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written.append(value)
            for argument in node.target._schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written.append(node.kwargs.get(argument.name))
        elif getattr(node.target, "__module__", "") == "_operator":
            written.extend(node.args[:1] if node.target in _INPLACE_OPERATORS else ())
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            pass  # Dynamo traces a region only if it does not write into its inputs
        else:
            name = getattr(node.target, "__name__", "")
            if (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace") is True:
                written.extend([*node.args[:1], node.kwargs.get("input")])
    flat: list[fx.Node] = []
    for value in written:
        flat.extend(
            v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, fx.Node)
        )
    return flat


def _storage(tensor: torch.Tensor) -> int | None:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


class Mutations:
    """The in-place operations of a graph, by the memory they write into."""

    def __init__(self, graph: fx.Graph):
        self._writes: dict[int, list[tuple[fx.Node, fx.Node]]] = defaultdict(list)
        self.unplaced: list[fx.Node] = []  # writes into memory that could not be identified
        for node in graph.nodes:
            for written in written_arguments(node):
                tensor = tensor_of(written)
                if tensor is None:
                    continue
                storage = _storage(tensor)
                if storage is None:
                    self.unplaced.append(node)
                else:
                    self._writes[storage].append((node, written))

    def between(self, node: fx.Node, reader: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        """(writing node, written node) after the creation of ``node`` and before ``reader``, in order."""
        tensor = tensor_of(node)
        storage = None if tensor is None else _storage(tensor)
        if storage is None:
            return []
        return [w for w in self._writes.get(storage, ()) if node < w[0] < reader]

    def replaced(self, old: fx.Node, new: fx.Node) -> None:
        """``new``, a tensor of its own, is read from now on where ``old`` was: so it is written where that
        was."""
        before, after = (
            None if tensor is None else _storage(tensor) for tensor in map(tensor_of, (old, new))
        )
        if before is None or after is None:
            return
        for writer, written in tuple(self._writes.get(before, ())):
            self._writes[after].append((writer, new if written is old else written))


def same_view(left: fx.Node, right: fx.Node) -> bool:
    """Whether two nodes see the same memory through the same sizes and strides."""
    a, b = tensor_of(left), tensor_of(right)
    if a is None or b is None or a.dim() != b.dim() or a.dtype != b.dtype:
        return False

    def layout(t: torch.Tensor) -> list[str]:
        return [str(x) for x in (*t.shape, *t.stride(), t.storage_offset())]

    return _storage(a) == _storage(b) and layout(a) == layout(b)
