"""The functions that ``flex_attention`` takes: score_mod read as a factor, mask_mod as a mask.

A mask_mod is captured as a graph over four numbers (batch, head, row, key) and the tensors that it closes
over. The same operations on four index tensors that broadcast to ``[B, Hq, Sq, Sk]`` give the whole mask, as
nodes of the parent that the prover reads like those of any other mask, and that nobody runs afterwards::

    mask_fn_0: b, h, q, k, ids -> and_(ge(q, k), eq(ids[b, q], ids[b, k]))

    %q = arange(Sq).view(1, 1, -1, 1);  %k = arange(Sk).view(1, 1, 1, -1);  ...
    %mask = and_(ge(%q, %k), eq(%ids[%b, %q], %ids[%b, %k]))
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..graph.emitter import Emitter
from ..graph.nodes import is_tensor, rank, shape, tensor_of, value
from ..graph.operations import calls, describe, operation
from ..graph.sizes import as_expr, emit_size
from ..graph.writes import changes_in_place
from .matrix_products import NotUnderstood

# What these do to numbers they do to each entry of a tensor of numbers.
_ELEMENTWISE = frozenset(
    (
        *("add", "radd", "sub", "subtract", "rsub", "mul", "multiply", "rmul", "neg", "negative", "abs"),
        *("floordiv", "floor_divide", "truediv", "true_divide", "div", "divide", "mod", "remainder"),
        *("minimum", "maximum", "clamp", "clip", "where", "to", "type_as", "bool", "int", "long", "float"),
        *("eq", "ne", "not_equal", "lt", "less", "le", "less_equal", "gt", "greater", "ge", "greater_equal"),
        *("and_", "and", "rand", "bitwise_and", "logical_and"),
        *("or_", "or", "ror", "bitwise_or", "logical_or"),
        *("xor", "rxor", "bitwise_xor", "logical_xor", "invert", "inv", "bitwise_not", "logical_not"),
        *("ones_like", "zeros_like", "full_like", "clone", "detach", "contiguous"),
    )
)
_TIMES, _DIVIDED_BY = ("mul", "multiply", "rmul"), ("truediv", "true_divide", "div", "divide")
_CONSTANTS = ("new_ones", "new_zeros", "new_full")
_ONE_EACH = (1, 1, 1, 1)


def constant_factor(score_mod: fx.GraphModule) -> float | None:
    """The number by which a score_mod multiplies every score; None if it does anything else."""
    score = score_mod.graph.find_nodes(op="placeholder")[0]
    (output,) = score_mod.graph.find_nodes(op="output")
    node, factor = _only(output.args[0]), 1.0
    while node is not score:
        if not calls(node, *_TIMES, *_DIVIDED_BY) or node.kwargs:
            return None
        left, right = node.args
        multiplies = calls(node, *_TIMES)
        node, number = (right, left) if multiplies and not isinstance(left, fx.Node) else (left, right)
        if not isinstance(number, int | float) or (number == 0 and not multiplies):
            return None
        factor = factor * number if multiplies else factor / number
    return factor if math.isfinite(factor) else None


def mask_of(
    emitter: Emitter, mask_mod: fx.GraphModule, captured: Sequence[Any], query: fx.Node, key: fx.Node
) -> fx.Node:
    """A bool node that broadcasts to ``[B, Hq, Sq, Sk]``: True where ``mask_mod`` allows.

    ``captured``: the operands behind its four numbers. Raises ``NotUnderstood`` for what can not be read as
    an operation on each entry.
    """
    return _Inlined(emitter, mask_mod, captured, query, key).mask()


class _Inlined:
    """A mask_mod's nodes, copied to its parent.

    ``entries`` holds the copies of what differs between entries of the mask, of four dims; ``plain`` the
    others, with the shapes that they had.
    """

    def __init__(
        self,
        emitter: Emitter,
        mask_mod: fx.GraphModule,
        captured: Sequence[Any],
        query: fx.Node,
        key: fx.Node,
    ) -> None:
        self.emitter = emitter
        self.graph = mask_mod.graph
        placeholders = self.graph.find_nodes(op="placeholder")
        if len(placeholders) != 4 + len(captured):
            raise NotUnderstood("it has other operands than the tensors that it reads")
        self.entries: dict[fx.Node, fx.Node] = {}
        self.plain: dict[fx.Node, Any] = dict(zip(placeholders[4:], captured, strict=True))
        sizes = (*shape(query)[:3], shape(key)[2])
        for dim, (placeholder, size) in enumerate(zip(placeholders, sizes, strict=False)):
            length = emit_size(emitter, as_expr(size), (query, key))
            dtype, device = value(placeholder).dtype, value(query).device
            index = emitter.function(torch.arange, length, dtype=dtype, device=device)
            self.entries[placeholder] = emitter.method("view", index, *_along(dim))

    def mask(self) -> fx.Node:
        """The node of the result."""
        for node in self.graph.nodes:
            if node.op == "output":
                return self._entry(_only(node.args[0]))
            if node.op == "placeholder":
                continue
            if node.op == "get_attr" or changes_in_place(node) or not operation(node):
                raise NotUnderstood(f"{describe(node)} in it")
            if any(source in self.entries for source in node.all_input_nodes):
                self.entries[node] = self._of_entries(node)
            else:
                self.plain[node] = self._copy(node, self.plain.__getitem__)
        raise NotUnderstood("it has no result")

    def _of_entries(self, node: fx.Node) -> fx.Node:
        if calls(node, "getitem", "index"):
            return self._indexed(node)
        if calls(node, *_CONSTANTS):
            size = node.args[1] if len(node.args) > 1 else node.kwargs.get("size")
            if size != ():
                raise NotUnderstood(f"{describe(node)} of size {size} in it")
            return self._view(self._copy(node, self._entry))
        if operation(node) not in _ELEMENTWISE:
            raise NotUnderstood(f"{describe(node)} in it")
        if not is_tensor(node) or any(is_tensor(x) and rank(x) for x in (node, *node.all_input_nodes)):
            raise NotUnderstood(f"{describe(node)} in it is not of single numbers")
        return self._copy(node, self._entry)

    def _indexed(self, node: fx.Node) -> fx.Node:
        """One element of a tensor that the function closes over, for each entry."""
        source: Any
        source, key = node.args
        items = list(key) if isinstance(key, tuple | list) else [key]
        whole = isinstance(source, fx.Node) and source in self.plain and is_tensor(source)
        if not whole or len(items) != rank(source) or not all(map(_is_one_integer, items)):
            raise NotUnderstood("it indexes a tensor otherwise than by one number a dimension")
        where = tuple(self._entry(item) if is_tensor(item) else self._plain(item) for item in items)
        return self.emitter.function(operator.getitem, self.plain[source], where)

    def _entry(self, node: Any) -> Any:
        """An operand of four dims; numbers stay what they are."""
        if node in self.entries:
            return self.entries[node]
        found = self._plain(node)
        return self._view(found) if is_tensor(found) else found

    def _plain(self, operand: Any) -> Any:
        return self.plain[operand] if isinstance(operand, fx.Node) else operand

    def _view(self, scalar: fx.Node) -> fx.Node:
        """Of four dims, since a tensor without dims counts less when dtypes are promoted."""
        if rank(scalar):
            raise NotUnderstood("a tensor with dimensions meets a single number in it")
        return self.emitter.method("view", scalar, *_ONE_EACH)

    def _copy(self, node: fx.Node, operand: Any) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), operand)
        if node.op == "call_method":
            return self.emitter.method(str(node.target), *args, **kwargs)
        return self.emitter.function(node.target, *args, **kwargs)  # type: ignore[arg-type]


def _along(dim: int) -> list[int]:
    return [-1 if dim == other else 1 for other in range(4)]


def _only(result: Any) -> Any:
    return result[0] if isinstance(result, tuple | list) else result


def _is_one_integer(item: Any) -> bool:
    tensor = tensor_of(item)
    if tensor is None:
        return isinstance(item, int) and not isinstance(item, bool)
    return tensor.dim() == 0 and not tensor.dtype.is_floating_point and tensor.dtype != torch.bool
