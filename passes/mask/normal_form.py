"""A mask's truth value becomes a MaskPredicate, or the literal that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import sympy
from sympy.core.function import AppliedUndef
from torch import fx

from .clauses import Clause, to_clauses, without_redundant
from .expression import Bool, Eq0, Flag, FloorDivide, Le0, Not, conjunction, disjunction, literals
from .facts import Facts
from .interpreter import Interpreter
from .materialise import Materialiser
from .packed import positions_of_segments
from .predicate import Chunk, MaskPredicate, Segments


class DoesNotFit(Exception):
    """The mask has a part that no predicate has. Holds the part."""

    def __init__(self, reason: str, part: Bool | sympy.Expr | None = None):
        super().__init__(reason)
        self.part = part


@dataclass(frozen=True)
class Axes:
    """The index variables of a mask ``[B, Hq, Sq, Sk]`` and its sizes."""

    batch: sympy.Symbol
    head: sympy.Symbol
    query: sympy.Symbol
    key: sympy.Symbol
    q_len: sympy.Expr
    kv_len: sympy.Expr

    def of(self, literal: Bool) -> set[sympy.Symbol]:
        """The index variables that occur in a literal."""
        found: set[sympy.Symbol] = set()
        for part in literals(literal):
            expr = part.lookup if isinstance(part, Flag) else part.expr  # type: ignore[attr-defined]
            found |= expr.free_symbols & {self.batch, self.head, self.query, self.key}
        return found


@dataclass
class _Parts:
    """Literals of the conjunction, sorted by what they are."""

    upper: list[sympy.Expr] = field(default_factory=list)  # k <= q + offset
    lower: list[sympy.Expr] = field(default_factory=list)  # k > q + offset
    chunk: list[tuple[sympy.Expr, sympy.Expr, sympy.Expr]] = field(
        default_factory=list
    )  # q side, k side, size
    segments: list[tuple[sympy.Expr, sympy.Expr]] = field(default_factory=list)  # q side, k side
    keys: list[Clause] = field(default_factory=list)


def to_predicate(
    allowed: Bool, axes: Axes, interpreter: Interpreter, materialiser: Callable[[], Materialiser]
) -> MaskPredicate:
    """The predicate that is true exactly where ``allowed`` is.

    Raises DoesNotFit, TooComplex (clauses.py) or NotEmittable (materialise.py) if there is none.
    """
    facts = interpreter.facts
    conditions = to_clauses(allowed)
    clauses = positions_of_segments(without_redundant(conditions, facts), interpreter)
    # Again: differences of positions may have become tautologies or duplicates.
    clauses = without_redundant(to_clauses(conjunction(disjunction(clause) for clause in clauses)), facts)
    parts = _Parts()
    for clause in clauses:
        _sort(clause, axes, parts, facts)
    offset = _tightest(parts.upper, facts.never_positive, "two causal conditions")
    lower = _tightest(parts.lower, facts.never_negative, "two window conditions")
    window = None
    if lower is not None:
        bound = Le0(sympy.expand(axes.query - axes.key + lower + 1))
        if offset is None:
            raise DoesNotFit("a window that is not causal", bound)
        window = sympy.expand(offset - lower)
        if not facts.never_negative(window - 1):
            raise DoesNotFit("a window that may hold no key", bound)
    chunk, chunk_offset = _chunk(parts, offset, axes, materialiser)
    key_valid = None
    if parts.keys:
        key_valid = materialiser().all_of(parts.keys, conditions, axes.batch, axes.key, axes.kv_len)
    position_offset = offset if offset is not None else chunk_offset
    start = None
    if position_offset.has(AppliedUndef):
        position_offset, start = _start(position_offset, materialiser)
        own_key = window is None and chunk is None
    else:
        own_key = facts.never_negative(position_offset) and (
            (window is None and chunk is None)
            or facts.never_positive(position_offset + axes.q_len - axes.kv_len)
        )
    return MaskPredicate(
        causal=offset is not None,
        q_offset=position_offset,
        window=window,
        chunk=chunk,
        key_valid=key_valid,
        segments=_segments(parts, axes, materialiser),
        rows_may_be_empty=not own_key and (offset is not None or chunk is not None),
        start=start,
    )


def _start(offset: sympy.Expr, materialiser: Callable[[], Materialiser]) -> tuple[sympy.Expr, fx.Node]:
    """An offset's part that is known when compiling, and the number that a tensor holds, as a node."""
    lookups = list(offset.atoms(AppliedUndef))
    known = sympy.expand(offset - lookups[0])
    if known.has(AppliedUndef) or known.has(FloorDivide):
        raise DoesNotFit("a causal offset that is more than one number of a tensor", Le0(offset))
    return known, materialiser().number(lookups[0])


def _is_one_number(expr: sympy.Expr, axes: Axes) -> bool:
    """The expression has one value, whichever entry of the mask it stands in."""
    lookups = expr.atoms(AppliedUndef)
    return not expr.free_symbols & {axes.batch, axes.query, axes.key} and all(
        index.is_Integer for lookup in lookups for index in lookup.args
    )


def _sort(clause: Clause, axes: Axes, parts: _Parts, facts: Facts) -> None:
    if not clause:
        raise DoesNotFit("a mask that allows nothing")
    whole = disjunction(clause)
    variables = axes.of(whole)
    if axes.head in variables:
        raise DoesNotFit("the mask depends on the head", whole)
    if axes.key in variables and variables <= {axes.batch, axes.key}:
        parts.keys.append(clause)
        return
    if axes.key not in variables:
        about = "rows of the query" if axes.query in variables else "the batch" if variables else "a value"
        raise DoesNotFit(f"the mask has a condition on {about} alone", whole)
    if len(clause) != 1:
        raise DoesNotFit("a choice between conditions on query and key", whole)
    (literal,) = clause
    bound = _as_bound(literal, facts)
    if bound is not None:
        _sort_bound(bound, axes, parts)
    elif isinstance(literal, Eq0):
        _sort_equality(literal, axes, parts)
    elif isinstance(literal, Flag) or (isinstance(literal, Not) and isinstance(literal.term, Flag)):
        raise DoesNotFit("the mask's entries per query and key are not known when compiling", literal)
    else:
        raise DoesNotFit("query and key must differ", literal)


def _as_bound(literal: Bool, facts: Facts) -> Le0 | None:
    """The literal as ``expr <= 0``; what is never negative is 0 where it is at most 0."""
    if isinstance(literal, Eq0):
        for expr in (literal.expr, -literal.expr):
            if facts.never_negative(expr):
                return Le0(sympy.expand(expr))
    return literal if isinstance(literal, Le0) else None


def _sort_bound(literal: Le0, axes: Axes, parts: _Parts) -> None:
    rest = sympy.expand(literal.expr - (axes.key - axes.query))
    reverse = sympy.expand(literal.expr - (axes.query - axes.key))
    if _is_one_number(rest, axes):
        parts.upper.append(sympy.expand(-rest))
    elif _is_one_number(reverse, axes):
        parts.lower.append(sympy.expand(reverse - 1))
    else:
        raise DoesNotFit("a comparison of query and key that is not k <= q + constant", literal)


def _sort_equality(literal: Eq0, axes: Axes, parts: _Parts) -> None:
    query_side, key_side = sympy.Integer(0), sympy.Integer(0)
    for term in sympy.Add.make_args(literal.expr):
        variables = term.free_symbols & {axes.query, axes.key}
        if variables == {axes.query, axes.key}:
            raise DoesNotFit("an equality that mixes query and key", literal)
        if axes.key in variables:
            key_side -= term
        else:
            query_side += term
    if isinstance(-query_side, FloorDivide):
        query_side, key_side = -query_side, -key_side
    if isinstance(query_side, FloorDivide) and isinstance(key_side, FloorDivide):
        if query_side.args[1] != key_side.args[1]:
            raise DoesNotFit("chunks of two sizes", literal)
        parts.chunk.append((query_side.args[0], key_side.args[0], query_side.args[1]))
    elif query_side.has(AppliedUndef) and key_side.has(AppliedUndef) and not literal.expr.has(FloorDivide):
        parts.segments.append((query_side, key_side))
    else:
        raise DoesNotFit("an equality of query and key that is neither chunk nor segment", literal)


def _tightest(
    bounds: list[sympy.Expr], at_most: Callable[[sympy.Expr], bool], what: str
) -> sympy.Expr | None:
    """The bound that implies the others; ``at_most(a - b)`` says that a is the tighter one."""
    result: sympy.Expr | None = None
    for bound in bounds:
        if result is None or at_most(bound - result):
            result = bound
        elif not at_most(result - bound):
            raise DoesNotFit(f"{what} of which neither implies the other", None)
    return result


def _chunk(
    parts: _Parts, offset: sympy.Expr | None, axes: Axes, materialiser: Callable[[], Materialiser]
) -> tuple[Chunk | None, sympy.Expr]:
    if not parts.chunk:
        return None, sympy.Integer(0)
    if len(parts.chunk) > 1:
        raise DoesNotFit("chunks of two kinds")
    query_side, key_side, size = parts.chunk[0]
    query_shift = sympy.expand(query_side - axes.query)
    key_shift = sympy.expand(key_side - axes.key)
    position_offset = sympy.expand(query_shift - key_shift)
    unwanted = {axes.query, axes.key, axes.batch}
    if position_offset.has(AppliedUndef) or (position_offset.free_symbols | size.free_symbols) & unwanted:
        raise DoesNotFit("chunks that start elsewhere for query and key")
    if size.has(AppliedUndef) or key_shift.free_symbols & {axes.query, axes.key}:
        raise DoesNotFit("chunks of a size that is not known when compiling")
    if offset is not None and sympy.expand(offset - position_offset) != 0:
        raise DoesNotFit("chunks of other positions than the causal mask's")
    left_pad = None if key_shift == 0 else materialiser().per_batch(sympy.expand(-key_shift), axes.batch)
    return Chunk(size, left_pad), position_offset


def _segments(parts: _Parts, axes: Axes, materialiser: Callable[[], Materialiser]) -> Segments | None:
    if not parts.segments:
        return None
    if len(parts.segments) > 1:
        raise DoesNotFit("segments of two kinds")
    query_side, key_side = parts.segments[0]
    query_id: fx.Node = materialiser().integers(query_side, axes.batch, axes.query, axes.q_len)
    key_id: fx.Node = materialiser().integers(key_side, axes.batch, axes.key, axes.kv_len)
    return Segments(query_id, key_id)
