"""Sizes: compared with guards and without, as sympy expressions, and as nodes of the graph."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import reduce
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from .emitter import Emitter
from .nodes import is_tensor, value


class SizeNotAvailable(Exception):
    """A symbol of the expression is no size of any tensor at hand."""


def as_expr(size: Any) -> sympy.Expr:
    """The sympy expression of an int or a SymInt."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def plain(size: Any) -> int | str:
    """A size for a report: an int, or its expression as text."""
    expr = as_expr(size)
    return int(expr) if expr.is_Integer else str(expr)


def same_size(a: Any, b: Any) -> bool:
    """Two sizes are known to be equal, without adding a guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(statically_known_true(a == b))


def required_equal(a: Any, b: Any) -> bool:
    """Two sizes that must be equal for the captured call to work: a guard holds them so where symbols
    differ."""
    return bool(a == b)


def same_shape(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Two shapes are known to be equal, without adding a guard."""
    a, b = tuple(a), tuple(b)
    return len(a) == len(b) and all(map(same_size, a, b))


def fixed(size: Any) -> int:
    """A size that does not vary between calls (heads, head_dim) as an int; a guard fixes a symbolic one."""
    return int(size)


def find_shape_env(gm: fx.GraphModule) -> ShapeEnv | None:
    """The ShapeEnv of the graph's symbolic sizes, or None if every size is a number."""
    for node in gm.graph.nodes:
        found = value(node)
        sizes = found.shape if isinstance(found, torch.Tensor) else (found,)
        for size in sizes:
            if isinstance(size, torch.SymInt):
                return size.node.shape_env
    return None


def emit_size(emitter: Emitter, expr: sympy.Expr, operands: tuple[fx.Node, ...]) -> int | fx.Node:
    """The value of a size expression: an int if constant, else a node.

    Symbols are taken from SymInt placeholders or from sizes of ``operands`` and placeholders. Raises
    ``SizeNotAvailable`` for a symbol that is neither.
    """
    expr = sympy.sympify(expr)
    if emitter.mode.shape_env is not None:
        # A guard may have made a symbol of the expression equal to another one since it was read.
        expr = emitter.mode.shape_env.replace(expr)
    if expr.is_Integer:
        return int(expr)
    whole = _find(emitter, expr, operands)
    if whole is not None:
        return whole
    if not expr.args:
        raise SizeNotAvailable(f"size {expr} is no size of a tensor of this graph")
    parts = [emit_size(emitter, part, operands) for part in expr.args]
    return _combine(emitter, expr, parts)


def _combine(emitter: Emitter, expr: sympy.Expr, parts: list[int | fx.Node]) -> int | fx.Node:
    binary = {
        sympy.Add: operator.add,
        sympy.Mul: operator.mul,
        FloorDiv: operator.floordiv,
        Mod: operator.mod,
        PythonMod: operator.mod,
        sympy.Max: torch.sym_max,
        sympy.Min: torch.sym_min,
    }.get(expr.func)
    if binary is None and type(expr).__name__ in ("Max", "Min"):
        binary = torch.sym_max if type(expr).__name__ == "Max" else torch.sym_min
    if binary is None:
        raise SizeNotAvailable(f"size {expr} is not a sum, product, quotient, maximum or minimum of sizes")

    def apply(a: int | fx.Node, b: int | fx.Node) -> int | fx.Node:
        if isinstance(a, int) and isinstance(b, int):
            return int(binary(a, b))
        return emitter.function(binary, a, b)

    return reduce(apply, parts)


def _find(emitter: Emitter, expr: sympy.Expr, operands: tuple[fx.Node, ...]) -> fx.Node | None:
    placeholders = emitter.graph.find_nodes(op="placeholder")
    for node in placeholders:
        if isinstance(value(node), torch.SymInt) and as_expr(value(node)) == expr:
            return node
    for node in (*operands, *placeholders):
        if not is_tensor(node):
            continue
        for dim, size in enumerate(value(node).shape):
            if isinstance(size, torch.SymInt) and as_expr(size) == expr:
                return emitter.method("size", node, dim)
    return None
