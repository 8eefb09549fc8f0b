"""A truth value as clauses (disjunctions of literals), free of what sizes and indices decide."""

from __future__ import annotations

from itertools import product
from typing import TypeAlias

from .expression import FALSE, TRUE, And, Bool, Eq0, Le0, Not, Or, Truth, disjunction
from .facts import Facts

Clause: TypeAlias = frozenset[Bool]

_MOST_CLAUSES = 256


class TooComplex(Exception):
    """The expression has too many clauses to go on."""


def to_clauses(term: Bool) -> list[Clause]:
    """Clauses that together are equivalent to ``term``: [frozenset()] is false. Raises TooComplex."""
    return _distribute(term)


def without_redundant(clauses: list[Clause], facts: Facts) -> list[Clause]:
    """The clauses without those that always hold or that others imply, and without redundant literals."""
    clauses = [_without_implied_literals(clause, facts) for clause in clauses]
    clauses = [clause for clause in clauses if not _is_always_true(clause, facts)]
    kept: list[Clause] = []
    for position, clause in enumerate(clauses):
        others = kept + clauses[position + 1 :]
        if not any(_clause_implies(other, clause, facts) for other in others):
            kept.append(clause)
    return kept


def _distribute(term: Bool) -> list[Clause]:
    if isinstance(term, Truth):
        return [] if term.value else [frozenset()]
    if isinstance(term, And):
        return [clause for part in term.terms for clause in _distribute(part)]
    if isinstance(term, Or):
        parts = [_distribute(part) for part in term.terms]
        count = 1
        for part in parts:
            count *= max(len(part), 1)
        if count > _MOST_CLAUSES:
            raise TooComplex("the mask is too complex a combination of conditions")
        result: list[Clause] = []
        for chosen in product(*parts):
            merged = disjunction(literal for clause in chosen for literal in clause)
            if merged == TRUE:
                continue
            if merged == FALSE:
                result.append(frozenset())
            else:
                result.append(frozenset(merged.terms) if isinstance(merged, Or) else frozenset([merged]))
        return list(dict.fromkeys(result))
    return [frozenset([term])]


def implies(left: Bool, right: Bool, facts: Facts) -> bool:
    """Whether one literal certainly implies another."""
    if left == right:
        return True
    if isinstance(right, Le0):
        if isinstance(left, Le0):
            return facts.never_positive(right.expr - left.expr)
        if isinstance(left, Eq0):
            return facts.never_positive(right.expr - left.expr) or facts.never_positive(
                right.expr + left.expr
            )
    if isinstance(right, Not) and isinstance(right.term, Eq0):
        if isinstance(left, Le0):
            e, f = left.expr, right.term.expr
            return facts.never_positive(1 - e - f) or facts.never_positive(f - e + 1)
        if isinstance(left, Eq0):
            e, f = left.expr, right.term.expr
            return any(
                facts.never_positive(1 + difference) or facts.never_negative(difference - 1)
                for difference in (e - f, e + f)
            )
    return False


def _without_implied_literals(clause: Clause, facts: Facts) -> Clause:
    kept = list(clause)
    for literal in list(clause):
        if any(other != literal and implies(literal, other, facts) for other in kept):
            kept.remove(literal)
    return frozenset(kept)


def _is_always_true(clause: Clause, facts: Facts) -> bool:
    bounds = [literal.expr for literal in clause if isinstance(literal, Le0)]
    # Of e <= 0 and f <= 0 one always holds if e + f <= 1: where e >= 1, f <= 0.
    return any(
        facts.never_positive(bounds[i] + bounds[j] - 1)
        for i in range(len(bounds))
        for j in range(i + 1, len(bounds))
    )


def _clause_implies(left: Clause, right: Clause, facts: Facts) -> bool:
    return all(any(implies(a, b, facts) for b in right) for a in left)
