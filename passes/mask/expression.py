"""What one element of a mask tensor is, as a function of its indices.

An element is one of

* a ``sympy.Expr``: an integer, over index variables, shape symbols and lookups ``name(i, j)`` of opaque
  tensors,
* ``Real``: a constant of a float tensor, already rounded to its dtype,
* ``Rounded``: an integer that a float dtype may have rounded,
* ``Unknown``: a float whose value is not known at compile time,
* a ``Bool``: a boolean combination of ``Le0``, ``Eq0`` and ``Flag``,
* ``Case``: a choice between two elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy


class Bool:
    """A truth value. Combine with ``conjunction``, ``disjunction``, ``negation`` and ``choose``."""


@dataclass(frozen=True)
class Truth(Bool):
    """A constant."""

    value: bool


@dataclass(frozen=True)
class Le0(Bool):
    """``expr <= 0``."""

    expr: sympy.Expr


@dataclass(frozen=True)
class Eq0(Bool):
    """``expr == 0``."""

    expr: sympy.Expr


@dataclass(frozen=True)
class Flag(Bool):
    """An element of an opaque bool tensor."""

    lookup: sympy.Expr


@dataclass(frozen=True)
class Not(Bool):
    """The negation of an ``Eq0`` or a ``Flag`` (every other negation is pushed inwards)."""

    term: Bool


@dataclass(frozen=True)
class And(Bool):
    """Two terms or more."""

    terms: frozenset[Bool]


@dataclass(frozen=True)
class Or(Bool):
    """Two terms or more."""

    terms: frozenset[Bool]


@dataclass(frozen=True)
class Real:
    """A constant of a float tensor."""

    value: float


@dataclass(frozen=True)
class Rounded:
    """An integer that a float dtype may have rounded, plus constants that add up to ``moved`` at most."""

    expr: sympy.Expr
    moved: int = 0


@dataclass(frozen=True)
class Unknown:
    """An element of an opaque float tensor."""

    lookup: sympy.Expr


@dataclass(frozen=True)
class Case:
    """``then`` where ``condition`` holds, ``other`` elsewhere. Bools are combined by ``choose`` instead."""

    condition: Bool
    then: Any
    other: Any


Element: TypeAlias = sympy.Expr | Bool | Real | Rounded | Unknown | Case

TRUE = Truth(True)
FALSE = Truth(False)


def negation(term: Bool) -> Bool:
    """not term, with the negation pushed to the literals."""
    if isinstance(term, Truth):
        return Truth(not term.value)
    if isinstance(term, Le0):
        return Le0(sympy.expand(1 - term.expr))
    if isinstance(term, Not):
        return term.term
    if isinstance(term, And):
        return disjunction(negation(t) for t in term.terms)
    if isinstance(term, Or):
        return conjunction(negation(t) for t in term.terms)
    return Not(term)


def conjunction(terms: Iterable[Bool]) -> Bool:
    """All of the terms: constants, duplicates, complements and absorbed disjunctions removed."""
    return _combine(terms, And, Or, TRUE, FALSE)


def disjunction(terms: Iterable[Bool]) -> Bool:
    """Any of the terms: constants, duplicates, complements and absorbed conjunctions removed."""
    return _combine(terms, Or, And, FALSE, TRUE)


def _combine(terms: Iterable[Bool], same: type, dual: type, neutral: Truth, absorbing: Truth) -> Bool:
    flat: set[Bool] = set()
    for term in terms:
        if term == absorbing:
            return absorbing
        if isinstance(term, same):
            flat |= term.terms  # type: ignore[attr-defined]
        elif term != neutral:
            flat.add(term)
    if any(negation(term) in flat for term in flat if not isinstance(term, And | Or)):
        return absorbing
    flat = {t for t in flat if not (isinstance(t, dual) and t.terms & flat)}  # type: ignore[attr-defined]
    if not flat:
        return neutral
    return next(iter(flat)) if len(flat) == 1 else same(frozenset(flat))


def choose(condition: Bool, then: Element, other: Element) -> Element:
    """``then`` where the condition holds, ``other`` elsewhere; both Bool or neither."""
    if isinstance(condition, Truth):
        return then if condition.value else other
    then, other = _assume(then, condition, True), _assume(other, condition, False)
    if then == other:
        return then
    if isinstance(then, Bool) and isinstance(other, Bool):
        if then == TRUE:
            return disjunction([condition, other])
        if other == TRUE:
            return disjunction([negation(condition), then])
        return disjunction([conjunction([condition, then]), conjunction([negation(condition), other])])
    return Case(condition, then, other)


def _assume(element: Element, condition: Bool, value: bool) -> Element:
    """The element where ``condition`` is known to have that value."""
    while isinstance(element, Case):
        if element.condition == condition:
            element = element.then if value else element.other
        elif element.condition == negation(condition):
            element = element.other if value else element.then
        else:
            break
    return element


def lift(function: Callable[..., Element], *elements: Element) -> Element:
    """Apply ``function`` to elements that may be ``Case``: the choice moves outside."""
    for position, element in enumerate(elements):
        if isinstance(element, Case):
            before, after = elements[:position], elements[position + 1 :]
            return choose(
                element.condition,
                lift(function, *before, element.then, *after),
                lift(function, *before, element.other, *after),
            )
    return function(*elements)


def literals(term: Bool) -> Iterable[Bool]:
    """Every Le0, Eq0 and Flag in the term."""
    if isinstance(term, And | Or):
        for part in term.terms:
            yield from literals(part)
    elif isinstance(term, Not):
        yield term.term
    elif not isinstance(term, Truth):
        yield term


def expressions(element: Element) -> Iterable[sympy.Expr]:
    """Every integer expression in the element (lookups included)."""
    if isinstance(element, Case):
        for part in (element.condition, element.then, element.other):
            yield from expressions(part)
    elif isinstance(element, Bool):
        for literal in literals(element):
            yield literal.lookup if isinstance(literal, Flag) else literal.expr  # type: ignore[attr-defined]
    elif isinstance(element, Rounded):
        yield element.expr
    elif isinstance(element, Unknown):
        yield element.lookup
    elif isinstance(element, sympy.Expr):
        yield element


class FloorDivide(sympy.Function):
    """Integer division that rounds towards minus infinity; stays as it is unless both sides are numbers."""

    nargs = 2
    is_integer = True

    @classmethod
    def eval(cls, numerator: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr | None:
        """Fold constants and division by one."""
        if numerator.is_Integer and divisor.is_Integer and divisor != 0:
            return sympy.Integer(int(numerator) // int(divisor))
        return numerator if divisor == 1 else None
