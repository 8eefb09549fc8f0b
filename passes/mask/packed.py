"""Packed sequences: segment numbers made from position ids, and what they say about the positions.

transformers numbers packed sequences by ``segment = cumsum(diff(x) != 1)`` of the position ids ``x``, and
compares ``x[b, k] <= x[b, q]``. Inside one segment every step of ``x`` is 1: there ``x[b, k] - x[b, q]`` is
``k - q``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import sympy
from sympy.core.function import AppliedUndef

from ..graph.nodes import tensor_of
from ..graph.operations import calls
from .clauses import Clause
from .expression import Bool, Element, Eq0, Le0, Not, negation
from .interpreter import Frame, GiveUp, Interpreter

PositionIds: TypeAlias = tuple[Any, sympy.Expr]  # the tensor's lookup function, and its batch index


def positions_of_segments(clauses: list[Clause], interpreter: Interpreter) -> list[Clause]:
    """The clauses, with differences of position ids replaced by those of indices where segments are equal."""
    for clause in clauses:
        if len(clause) != 1:
            continue
        (literal,) = clause
        pair = _equal_lookups(literal)
        if pair is None:
            continue
        ids = _steps_of_one(interpreter, pair[0])
        if ids is not None:
            clauses = [c if c == clause else _replaced(c, ids, pair, interpreter) for c in clauses]
    return clauses


def _equal_lookups(literal: Bool) -> tuple[AppliedUndef, AppliedUndef] | None:
    """The two lookups of one 2-D node that the literal says are equal."""
    if not isinstance(literal, Eq0):
        return None
    lookups = sorted(literal.expr.atoms(AppliedUndef), key=str)
    if len(lookups) != 2 or lookups[0].func != lookups[1].func or len(lookups[0].args) != 2:
        return None
    left, right = lookups
    if sympy.expand(literal.expr - (left - right)) != 0 and sympy.expand(literal.expr - (right - left)) != 0:
        return None
    return (left, right) if left.args[0] == right.args[0] else None


def _steps_of_one(interpreter: Interpreter, segment: AppliedUndef) -> PositionIds | None:
    """Position ids (name, batch index) whose step is 1 where the segment number does not rise, or None."""
    node = interpreter.nodes[segment.func.__name__]
    if not calls(node, "cumsum"):
        return None
    frame = Frame(interpreter, node)
    try:
        source = frame.tensor()
        tensor = tensor_of(source)
        if tensor is None or frame.dim(frame.arg(1, "dim"), 2) != 1:
            return None
        # From 1 on: the first summand says nothing about a step.
        at = interpreter.fresh_index(frame.shape_of(source)[1], first=1)
        step: Element = frame.read(source, (segment.args[0], at))
    except GiveUp:
        return None
    if not isinstance(step, Bool) or not isinstance(step, Not) or not isinstance(negation(step), Eq0):
        return None
    unchanged = step.term.expr  # type: ignore[attr-defined]
    for lookup in unchanged.atoms(AppliedUndef):
        if len(lookup.args) == 2 and lookup.args[1] == at:
            previous = lookup.func(lookup.args[0], at - 1)
            if any(sympy.expand(sign * unchanged - (lookup - previous - 1)) == 0 for sign in (1, -1)):
                return lookup.func, lookup.args[0]
    return None


def _replaced(
    clause: Clause, ids: PositionIds, pair: tuple[AppliedUndef, AppliedUndef], interpreter: Interpreter
) -> Clause:
    function, batch = ids
    here, there = (function(batch, lookup.args[1]) for lookup in pair)
    distance = pair[0].args[1] - pair[1].args[1]
    result: set[Bool] = set()
    for literal in clause:
        if isinstance(literal, Le0) and here in literal.expr.atoms(AppliedUndef):
            expr = sympy.expand(literal.expr.subs(here, there + distance))
            result.add(interpreter.facts.less_equal_zero(expr))
        else:
            result.add(literal)
    return frozenset(result)
