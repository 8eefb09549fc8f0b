"""What is known about sizes and index variables: proofs of linear inequalities that install no guards."""

from __future__ import annotations

import sympy
from sympy.core.function import Application, AppliedUndef
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true

from .expression import FALSE, TRUE, Bool, Eq0, FloorDivide, Le0


class Facts:
    """Ranges of index variables, and the ShapeEnv's knowledge of the sizes."""

    def __init__(self, shape_env: ShapeEnv | None):
        self.shape_env = shape_env
        self.last: dict[sympy.Symbol, sympy.Expr] = {}  # index variable -> its largest value
        self.first: dict[sympy.Symbol, sympy.Expr] = {}
        self.given: list[sympy.Expr] = []  # expressions that are never negative
        self._known: dict[sympy.Expr, bool] = {}

    def index(self, name: str, size: sympy.Expr, first: int = 0) -> sympy.Symbol:
        """A new index variable ``first <= name < size``."""
        symbol = sympy.Symbol(name, integer=True)
        self.first[symbol], self.last[symbol] = sympy.Integer(first), size - 1
        return symbol

    def never_positive(self, expr: sympy.Expr) -> bool:
        """``expr <= 0`` for all index values and all sizes; False if it can not be proven."""
        expr = sympy.expand(expr)
        if expr not in self._known:
            self._known[expr] = self._prove(expr)
        return self._known[expr]

    def never_negative(self, expr: sympy.Expr) -> bool:
        """``expr >= 0`` for all index values and all sizes; False if it can not be proven."""
        return self.never_positive(-expr)

    def equal(self, left: sympy.Expr, right: sympy.Expr) -> bool:
        """The two are equal for all index values and all sizes; False if it can not be proven."""
        difference = sympy.expand(left - right)
        return difference == 0 or (self.never_positive(difference) and self.never_negative(difference))

    def simplify(self, expr: sympy.Expr) -> sympy.Expr:
        """The expression with every maximum and minimum replaced whose outcome is certain."""
        for extreme in expr.atoms(Application):
            sign = {"Max": 1, "Min": -1}.get(type(extreme).__name__)
            for argument in extreme.args if sign else ():
                if all(self.never_positive(sign * (other - argument)) for other in extreme.args):
                    return self.simplify(expr.subs(extreme, argument))
        return expr

    def _prove(self, expr: sympy.Expr) -> bool:
        if expr.is_number:
            return bool(expr <= 0)
        if expr.has(AppliedUndef) or expr.has(FloorDivide):
            return False
        for symbol in [s for s in expr.free_symbols if s in self.last]:
            slope = expr.coeff(symbol)
            if symbol in (expr - slope * symbol).expand().free_symbols or symbol in slope.free_symbols:
                return False
            # The largest value is at one end of the variable's range; which one must be certain.
            if slope.is_nonnegative:
                end = self.last[symbol]
            elif slope.is_nonpositive:
                end = self.first[symbol]
            else:
                return False
            expr = sympy.expand(expr.subs(symbol, end))
        for extreme in expr.atoms(Application):
            if type(extreme).__name__ in ("Max", "Min"):
                # It is one of its arguments: what holds for each of them holds for it.
                return all(self.never_positive(expr.subs(extreme, argument)) for argument in extreme.args)
        relation = sympy.Le(expr, 0)
        if relation in (sympy.true, sympy.false):
            return bool(relation)
        if self.shape_env is None:
            return False
        # What is at most zero after adding something that is never negative was at most zero before.
        relations = [relation, *(sympy.Le(sympy.expand(expr + given), 0) for given in self.given)]
        return any(self._statically_true(r) for r in relations)

    def _statically_true(self, relation: sympy.Basic) -> bool:
        if relation in (sympy.true, sympy.false):
            return bool(relation)
        assert self.shape_env is not None
        return statically_known_true(self.shape_env.create_symboolnode(relation))

    def less_equal_zero(self, expr: sympy.Expr) -> Bool:
        """``expr <= 0``, decided if it can be."""
        expr = sympy.expand(expr)
        if self.never_positive(expr):
            return TRUE
        if self.never_negative(expr - 1):
            return FALSE
        # Together: an expression that is never negative is at most zero only where it is zero.
        return self.equals_zero(expr) if self.never_negative(expr) else Le0(expr)

    def equals_zero(self, expr: sympy.Expr) -> Bool:
        """``expr == 0``, decided if it can be; of an expression and its negative, one is chosen."""
        expr = sympy.expand(expr)
        if expr == 0:
            return TRUE
        if self.never_negative(expr - 1) or self.never_positive(expr + 1):
            return FALSE
        if self.never_negative(expr) and self.never_positive(expr):
            return TRUE
        return Eq0(min(expr, sympy.expand(-expr), key=sympy.default_sort_key))
