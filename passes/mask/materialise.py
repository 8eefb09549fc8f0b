"""Key validity and segment numbers as nodes of the graph: existing ones if there are, else small new ones.

New nodes are [B, S]-sized, stand before the attention, and are shared by the sites that need the same value;
without a user they are dead code like any other.
"""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from torch import fx

from ..graph.emitter import Emitter
from ..graph.nodes import tensor_of
from ..graph.sizes import SizeNotAvailable, emit_size
from .clauses import Clause
from .expression import And, Bool, Eq0, Flag, Le0, Not, Or
from .interpreter import Index, Interpreter

_KEY = "mask_part"


class NotEmittable(Exception):
    """A part of the mask has no node, and none can be made. Holds the node at fault."""

    def __init__(self, reason: str, node: fx.Node | None = None):
        super().__init__(reason)
        self.node = node


class Materialiser:
    """Makes nodes [B|1, size] of expressions over ``batch`` and ``axis``, before ``anchor``."""

    def __init__(self, interpreter: Interpreter, anchor: fx.Node, operands: tuple[fx.Node, ...]):
        self.interpreter = interpreter
        self.anchor = anchor
        self.device = tensor_of(operands[0]).device  # type: ignore[union-attr]
        # The operands of a child graph module's attention are no nodes of the parent that builds its mask.
        self.operands = tuple(node for node in operands if node.graph is anchor.graph)
        self.emitter = Emitter(anchor)

    def all_of(
        self,
        required: list[Clause],
        conditions: list[Clause],
        batch: sympy.Symbol,
        axis: sympy.Symbol,
        size: sympy.Expr,
    ) -> fx.Node:
        """A bool node [B|1, size]: the required clauses hold, perhaps more of the ``conditions``."""
        left = set(required)
        parts = []
        while left:
            node, covered = self._existing(left, set(conditions) | left, batch, axis, size)
            if node is None:
                break
            parts.append(node)
            left -= covered
        rows = _Rows(self, batch, axis, size)
        parts.extend(rows.clause(clause) for clause in sorted(left, key=str))
        result = parts[0]
        for part in parts[1:]:
            result = self.node(operator.and_, result, part)
        return result

    def integers(
        self, expr: sympy.Expr, batch: sympy.Symbol, axis: sympy.Symbol, size: sympy.Expr
    ) -> fx.Node:
        """An integer node [B|1, size] of an expression."""
        return _Rows(self, batch, axis, size).integers(expr)

    def number(self, lookup: AppliedUndef) -> fx.Node:
        """One element of an opaque node as int64 without dimensions, on the CPU.

        It is read, and waited for, where the node is defined: what writes into the node comes later.
        """
        node = self.interpreter.nodes[lookup.func.__name__]
        anchor = node.next
        while anchor.op == "placeholder" or _KEY in anchor.meta:
            anchor = anchor.next
        early = Materialiser(self.interpreter, anchor, (node,))
        for index in lookup.args:
            node = early.node("select", node, 0, int(index))
        return early.node("to", node, "cpu", torch.int64, copy=True)

    def per_batch(self, expr: sympy.Expr, batch: sympy.Symbol) -> fx.Node:
        """An integer node [B] (or [1]) of an expression over the batch alone."""
        if not expr.has(AppliedUndef):
            return self.node(torch.full, (1,), self.size(expr), dtype=torch.int64, device=self.device)
        return _Rows(self, batch, batch, sympy.Integer(1)).integers(expr)

    def size(self, expr: sympy.Expr) -> fx.Node | int:
        """A size as a number or a node."""
        try:
            return emit_size(self.emitter, expr, self.operands)
        except SizeNotAvailable as error:
            raise NotEmittable(str(error)) from error

    def check_unwritten(self, node: fx.Node) -> fx.Node:
        """The node, if nothing writes into it before the attention reads it."""
        writes = self.interpreter.mutations.between(node, self.anchor)
        if writes:
            raise NotEmittable(f"{node} is written in place before the attention", writes[0][0])
        return node

    def node(self, target: object, *args: object, **kwargs: object) -> fx.Node:
        """An emitted node; an equal one made for another site is used again."""
        key = (target, str(args), str(sorted(kwargs.items(), key=str)))
        for argument in args:
            if isinstance(argument, fx.Node):
                for user in argument.users:
                    if user.meta.get(_KEY) == key and user < self.anchor:
                        return user
        node = (
            self.emitter.method(target, *args, **kwargs)
            if isinstance(target, str)
            else self.emitter.function(target, *args, **kwargs)  # type: ignore[arg-type]
        )
        node.meta[_KEY] = key
        return node

    def _existing(
        self,
        wanted: set[Clause],
        conditions: set[Clause],
        batch: sympy.Symbol,
        axis: sympy.Symbol,
        size: sympy.Expr,
    ) -> tuple[fx.Node | None, set[Clause]]:
        """The bool node [B|1, size] of the mask's own subgraph that stands for most of the wanted clauses."""
        best: fx.Node | None = None
        gained: set[Clause] = set()
        for (node, index, writes), element in self.interpreter.memo.items():
            if writes or not self._holds_rows(node, index, batch, axis, size):
                continue
            terms = element.terms if isinstance(element, And) else {element}
            clauses: set[Any] = {frozenset(t.terms) if isinstance(t, Or) else frozenset([t]) for t in terms}
            if not clauses <= conditions or self.interpreter.mutations.between(node, self.anchor):
                continue
            gain = clauses & wanted
            if len(gain) > len(gained) or (best is not None and gain == gained and _rank(node) < _rank(best)):
                best, gained = node, gain
        if best is not None:
            for dim in range(_rank(best) - 2, 0, -1):
                best = self.node("select", best, dim, 0)
        return best, gained

    def _holds_rows(
        self, node: fx.Node, index: Index, batch: sympy.Symbol, axis: sympy.Symbol, size: sympy.Expr
    ) -> bool:
        """The node is a bool tensor [B|1, 1..., size] that the mask reads at (batch, 0..., axis)."""
        tensor = tensor_of(node)
        if tensor is None or tensor.dtype != torch.bool or len(index) < 2 or index[-1] != axis:
            return False
        shape = self.interpreter.shape(node)
        rows = index[0] == batch or (index[0] == 0 and shape[0] == 1)
        middle = all(i == 0 and n == 1 for i, n in zip(index[1:-1], shape[1:-1], strict=True))
        return rows and middle and self.interpreter.facts.equal(shape[-1], size)


def _rank(node: fx.Node) -> int:
    tensor = tensor_of(node)
    assert tensor is not None
    return tensor.dim()


class _Rows:
    """Emits expressions as rows [B|1, size] along one axis."""

    def __init__(self, owner: Materialiser, batch: sympy.Symbol, axis: sympy.Symbol, size: sympy.Expr):
        self.owner = owner
        self.batch = batch
        self.axis = axis
        self.size = size

    def clause(self, clause: Clause) -> fx.Node:
        parts = [self.literal(literal) for literal in sorted(clause, key=str)]
        result = parts[0]
        for part in parts[1:]:
            result = self.owner.node(operator.or_, result, part)
        return result

    def literal(self, literal: Bool) -> fx.Node:
        if isinstance(literal, Flag):
            return self.lookup(literal.lookup)
        if isinstance(literal, Not):
            if isinstance(literal.term, Eq0):
                return self._compared(operator.ne, literal.term.expr)
            return self.owner.node("logical_not", self.literal(literal.term))
        if isinstance(literal, Le0):
            return self._compared(operator.le, literal.expr)
        if isinstance(literal, Eq0):
            return self._compared(operator.eq, literal.expr)
        raise NotEmittable(f"{literal} has no node")

    def _compared(self, comparison: object, expr: sympy.Expr) -> fx.Node:
        """``expr`` against 0, its constant on the right."""
        constant, rest = expr.as_coeff_Add()
        if not constant.is_Integer:
            constant, rest = sympy.Integer(0), expr
        value = self._integers(rest)
        if isinstance(value, int):
            raise NotEmittable(f"{expr} is no tensor")
        return self.owner.node(comparison, value, int(-constant))

    def integers(self, expr: sympy.Expr) -> fx.Node:
        value = self.lookup(expr) if isinstance(expr, AppliedUndef) else self._integers(expr)
        if isinstance(value, int):
            raise NotEmittable(f"{expr} is no tensor")
        return value

    def _integers(self, expr: sympy.Expr) -> fx.Node | int:
        if isinstance(expr, AppliedUndef):
            # Narrow integers would overflow where the mask's own arithmetic did not.
            return self.owner.node("to", self.lookup(expr), torch.int64)
        if expr == self.axis:
            return self._positions()
        if not (expr.free_symbols & {self.axis, self.batch}) and not expr.has(AppliedUndef):
            return self.owner.size(expr)
        if expr.is_Add or expr.is_Mul:
            operation = operator.add if expr.is_Add else operator.mul
            result, *parts = (self._integers(arg) for arg in expr.args)
            for part in parts:
                result = self.owner.node(operation, result, part)
            return result
        raise NotEmittable(f"{expr} has no node")

    def _positions(self) -> fx.Node:
        row = self.owner.node(torch.arange, self.owner.size(self.size), device=self.owner.device)
        return self.owner.node("unsqueeze", row, 0)

    def lookup(self, expr: sympy.Expr) -> fx.Node:
        """``node[i, j, ...]`` along batch and axis: [B|1, size], or [B, 1] without the axis."""
        interpreter = self.owner.interpreter
        node = self.owner.check_unwritten(interpreter.nodes[expr.func.__name__])
        shape = interpreter.shape(node)
        result, seen = node, []
        for dim in reversed(range(len(shape))):
            i = expr.args[dim]
            if i == self.batch:
                if not interpreter.facts.equal(shape[dim], interpreter.facts.last[i] + 1):
                    raise NotEmittable(f"{node} has another batch size", node)
                seen.append(self.batch)
            elif self.axis in i.free_symbols:
                first = sympy.expand(i - self.axis)
                if not (
                    first.is_Integer and interpreter.facts.never_positive(first + self.size - shape[dim])
                ):
                    raise NotEmittable(f"{node} is not certainly read within its size", node)
                if first != 0 or not interpreter.facts.equal(shape[dim], self.size):
                    result = self.owner.node("narrow", result, dim, int(first), self.owner.size(self.size))
                seen.append(self.axis)
            elif i.is_Integer:
                result = self.owner.node("select", result, dim, int(i))
            else:
                raise NotEmittable(f"{node} is read at {i}", node)
        if seen[:2] not in ([self.axis, self.batch], [self.axis], [self.batch], []) or len(seen) > 2:
            raise NotEmittable(f"{node} is read with its dims in another order", node)
        if self.axis != self.batch and self.batch not in seen:
            result = self.owner.node("unsqueeze", result, 0)
        if self.axis not in seen:
            result = self.owner.node("unsqueeze", result, -1)
        return result

    def _check_within(self, node: fx.Node, first: sympy.Expr, size: sympy.Expr) -> None:
        """Elements ``first ... first + self.size - 1`` certainly exist."""
        facts = self.owner.interpreter.facts
        moving = first.free_symbols & {self.axis, self.batch} or first.has(AppliedUndef)
        if moving or not facts.never_negative(first) or not facts.never_positive(first + self.size - size):
            raise NotEmittable(f"{node} is not certainly read within its size", node)
