"""Walks a mask subgraph backwards: what is element ``index`` of this node?

Every operation has a rule (modules ``ops_*``) that answers for its result by asking for elements of its
arguments. A node without a rule, or whose rule gives up, is opaque: its elements are lookups ``node(i, j)``.
That is always true, and often enough (a padding mask is such a lookup); ``Interpreter.cause`` remembers why,
for the report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx

from ..graph.mutations import Mutations, same_view
from ..graph.nodes import argument, held, normal_dim, tensor_of
from ..graph.operations import describe, operation
from ..graph.sizes import as_expr
from ..graph.writes import written_arguments
from .expression import Bool, Element, Flag, Real, Truth, Unknown, choose, conjunction
from .facts import Facts
from .predicate import NotProven

Index = tuple[sympy.Expr, ...]
Rule = Callable[["Frame", Index], Element]

# Rules by the operation's name; filled by the ops_* modules.
RULES: dict[str, Rule] = {}


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operations (functions, methods, operators and ATen alike)."""

    def register(function: Rule) -> Rule:
        for one in operations:
            RULES[one] = function
        return function

    return register


class GiveUp(Exception):
    """A rule can not say what the element is: the node is opaque."""


class Stop(Exception):
    """Going on would be unsound: the mask is not proven."""

    def __init__(self, reason: str, node: fx.Node):
        super().__init__(reason)
        self.result = NotProven(reason, node)


class Interpreter:
    """Elements of the nodes that one mask is made of, read where ``reader`` stands."""

    def __init__(self, mutations: Mutations, facts: Facts):
        self.facts = facts
        self.mutations = mutations
        self.cause: dict[fx.Node, str] = {}  # opaque node -> why
        self.nodes: dict[str, fx.Node] = {}  # those that lookups are named after
        self.memo: dict[tuple[fx.Node, Index, int], Element] = {}
        self._fresh = 0

    def shape(self, node: fx.Node) -> tuple[sympy.Expr, ...]:
        """The sizes of a tensor node."""
        tensor = tensor_of(node)
        if tensor is None:
            raise GiveUp(f"{node} has no tensor value in the graph's metadata")
        return tuple(self.facts.simplify(as_expr(size)) for size in tensor.shape)

    def fresh_index(self, size: sympy.Expr, first: int = 0) -> sympy.Symbol:
        """An index variable of its own, ``first <= i < size``."""
        self._fresh += 1
        return self.facts.index(f"i{self._fresh}", size, first)

    def element(self, node: fx.Node, index: Index, reader: fx.Node) -> Element:
        """Element ``index`` of ``node`` as ``reader`` sees it. Raises Stop if in-place writes forbid it."""
        writes = self.mutations.between(node, reader)
        key = (node, index, len(writes))
        if key not in self.memo:
            self.memo[key] = self._after_writes(node, index, writes)
        return self.memo[key]

    def lookup(self, node: fx.Node, index: Index) -> Element:
        """Element ``index`` of an opaque node."""
        tensor = tensor_of(node)
        assert tensor is not None
        self.nodes[node.name] = node
        value = sympy.Function(node.name, integer=True)(*index)
        if tensor.dtype == torch.bool:
            return Flag(value)
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            return Unknown(value)
        return value

    def _after_writes(self, node: fx.Node, index: Index, writes: list[tuple[fx.Node, fx.Node]]) -> Element:
        if not writes:
            return self._defined(node, index)
        writer, written = writes[-1]
        if not same_view(node, written):
            raise Stop(
                f"{describe(writer)} writes in place into another view of a tensor the mask is made of",
                writer,
            )
        frame = Frame(self, writer)
        function = RULES.get(operation(writer))
        if function is None:
            raise Stop(f"in-place {describe(writer)} on the way to the mask is not understood", writer)
        try:
            return _apply(function, frame, index)
        except GiveUp as error:
            raise Stop(f"in-place {describe(writer)}: {error}", writer) from error

    def _defined(self, node: fx.Node, index: Index) -> Element:
        function = RULES.get(operation(node))
        try:
            if len(index) != len(self.shape(node)):
                raise GiveUp("rank mismatch")
            if node.op == "placeholder":
                raise GiveUp("the content of an input is not known when compiling")
            if function is None:
                raise GiveUp(f"operation {describe(node)} is not understood")
            return _apply(function, Frame(self, node), index)
        except GiveUp as error:
            if written_arguments(node):
                raise Stop(
                    f"in-place {describe(node)} on the way to the mask is not understood: {error}", node
                ) from error
            self.cause.setdefault(node, str(error))
            return self.lookup(node, index)


class Frame:
    """One node while its rule runs: its arguments, and elements of them."""

    def __init__(self, interpreter: Interpreter, node: fx.Node):
        self.interpreter = interpreter
        self.node = node
        self.facts = interpreter.facts

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the node's result (of what it writes into, for a node without a result)."""
        tensor = tensor_of(self.node)
        if tensor is None:
            tensor = tensor_of(self.node.args[0])
        assert tensor is not None
        return tensor.dtype

    @property
    def shape(self) -> tuple[sympy.Expr, ...]:
        """The shape of the node's result (of what it writes into, for a node without a result)."""
        return self.interpreter.shape(self.node if tensor_of(self.node) is not None else self.node.args[0])  # type: ignore[arg-type]

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return argument(self.node, position, name, default)

    def tensor(self, position: int = 0, name: str = "input") -> fx.Node:
        """An argument that must be a tensor node."""
        value = self.arg(position, name, self.node.kwargs.get("self"))
        if tensor_of(value) is None:
            source = describe(value) if isinstance(value, fx.Node) else repr(value)
            raise GiveUp(f"argument '{name}', {source}, is not a tensor")
        return value

    def shape_of(self, value: Any) -> tuple[sympy.Expr, ...]:
        """The shape of an argument; () for a scalar."""
        return self.interpreter.shape(value) if tensor_of(value) is not None else ()

    def dtype_of(self, value: Any) -> torch.dtype:
        """The dtype of a tensor argument; of a Python scalar, one that holds it exactly."""
        tensor = tensor_of(value)
        if tensor is not None:
            return tensor.dtype
        scalar = self.read(value, ())
        if isinstance(scalar, Bool):
            return torch.bool
        return torch.float64 if isinstance(scalar, Real) else torch.int64

    def size(self, value: Any) -> sympy.Expr:
        """A size argument (int, SymInt node) as an expression."""
        value = held(value)
        if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
            return self.facts.simplify(as_expr(value))
        raise GiveUp(f"size argument {value} is not an integer")

    def integer(self, value: Any) -> int:
        """An argument that must be a number known when compiling, such as a dim."""
        size = self.size(value)
        if not size.is_Integer:
            raise GiveUp(f"argument {value} is not a constant")
        return int(size)

    def dim(self, value: Any, rank: int) -> int:
        """A dim argument, counted from the front."""
        dim = self.integer(value)
        if not -rank <= dim < max(rank, 1):
            raise GiveUp(f"dim {dim} of a tensor of {rank} dims")
        return normal_dim(dim, rank) if rank else 0

    def sizes(self, position: int, name: str) -> list[Any]:
        """A list of sizes given as one sequence or as several arguments from ``position`` on."""
        first = self.arg(position, name)
        if isinstance(first, list | tuple):
            return list(first)
        if isinstance(held(first), tuple):  # torch.Size
            return list(held(first))
        return list(self.node.args[position:])

    def read(self, value: Any, index: Index) -> Element:
        """Element ``index`` of an argument; a scalar is its own element."""
        if tensor_of(value) is not None:
            return self.interpreter.element(value, index, self.node)
        value = held(value)
        if isinstance(value, bool):
            return Truth(value)
        if isinstance(value, int | torch.SymInt):
            return self.facts.simplify(as_expr(value))
        if isinstance(value, float):
            return Real(value)
        raise GiveUp(f"argument {value!r} is neither a tensor nor a number")

    def broadcast(self, value: Any, index: Index) -> Element:
        """The element of an argument that broadcasts to the result at ``index``."""
        return self.read(value, self.broadcast_index(self.shape_of(value), self.shape, index))

    def broadcast_index(self, shape: Index, to: Index, index: Index) -> Index:
        """Where a tensor of ``shape`` is read when it is broadcast to the shape ``to``."""
        if len(shape) > len(to):
            raise GiveUp("argument has more dims than the result")
        skipped = len(to) - len(shape)
        result = []
        for size, target, i in zip(shape, to[skipped:], index[skipped:], strict=True):
            if size == target or self.facts.equal(size, target):
                result.append(i)
            elif size == 1:
                result.append(sympy.Integer(0))
            else:
                raise GiveUp(f"size {size} against {target}")
        return tuple(result)

    def select(self, condition: Bool, then: Element, other: Element) -> Element:
        """``then`` where the condition holds, else ``other``."""
        if isinstance(then, Bool) != isinstance(other, Bool):
            raise GiveUp("a choice between a truth value and a number")
        return choose(condition, then, other)

    def all_of(self, terms: list[Bool]) -> Bool:
        """Every one of the terms."""
        return conjunction(terms)

    def less_equal(self, left: sympy.Expr, right: sympy.Expr) -> Bool:
        """left <= right"""
        return self.facts.less_equal_zero(left - right)


def _apply(function: Rule, frame: Frame, index: Index) -> Element:
    """The rule's answer; arguments that it was not written for make it give up."""
    try:
        return function(frame, index)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise GiveUp(f"{describe(frame.node)} with arguments that are not understood ({error})") from error
