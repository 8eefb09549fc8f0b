"""Sizes whose range the caller declared: ``torch._dynamo.mark_dynamic(x, dim, min=2, max=8192)``.

One graph must serve the whole range, so no guard may narrow it: Dynamo would raise ConstraintViolationError.
That holds for Inductor's guards too, and its layouts put guards on the number of blocks.
"""

from __future__ import annotations

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv, StrictMinMaxConstraint, statically_known_true


class RangeUndecided(Exception):
    """A condition holds for some sizes of a declared range and not for others."""


def in_declared_range(env: ShapeEnv | None, *sizes: sympy.Expr) -> bool:
    """Whether one of the sizes depends on a size with a declared range."""
    symbols = set().union(*(size.free_symbols for size in sizes))
    return env is not None and bool(symbols) and not symbols.isdisjoint(_declared_symbols(env))


def evaluate(env: ShapeEnv, condition: sympy.Basic) -> bool:
    """Whether a condition on sizes is true; a guard keeps it so.

    Raises ``RangeUndecided`` if that guard would narrow a declared range; one that relates several sizes
    narrows none of them.
    """
    symbols = env.replace(condition).free_symbols
    if len(symbols) != 1 or symbols.isdisjoint(_declared_symbols(env)):
        return bool(env.evaluate_expr(condition))
    for answer, asked in ((True, condition), (False, sympy.Not(condition))):
        if asked in (sympy.true, True) or statically_known_true(env.create_symboolnode(asked)):
            return answer
    raise RangeUndecided(f"the declared range of a length does not decide {condition}")


def _declared_symbols(env: ShapeEnv) -> set[sympy.Symbol]:
    symbols: set[sympy.Symbol] = set()
    for tracked in env.tracked_fakes or ():
        constraints = getattr(tracked.symbolic_context, "constraint_sizes", None) or ()
        sizes = tracked.fake.shape if isinstance(tracked.fake, torch.Tensor) else ()
        for size, constraint in zip(sizes, constraints, strict=False):
            strict = isinstance(constraint, StrictMinMaxConstraint) and not constraint.warn_only
            if strict and isinstance(size, torch.SymInt):
                symbols |= env.replace(size.node.expr).free_symbols
    return symbols
