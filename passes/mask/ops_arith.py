"""Rules of element-wise operations: arithmetic, comparisons, logic, casts, choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch

from ..graph.operations import calls, describe
from .element_arithmetic import WIDE_INTS, arithmetic, as_number, cast, compare
from .expression import (
    FALSE,
    TRUE,
    Bool,
    Element,
    Flag,
    FloorDivide,
    Real,
    conjunction,
    disjunction,
    lift,
    negation,
)
from .interpreter import Frame, GiveUp, Index, Rule, rule


def _operands(frame: Frame, index: Index) -> tuple[Element, Element]:
    left, right = frame.arg(0, "input", frame.node.kwargs.get("self")), frame.arg(1, "other")
    return frame.broadcast(left, index), frame.broadcast(right, index)


def _arithmetic_rule(name: str, reverse: bool = False) -> Rule:
    def run(frame: Frame, index: Index) -> Element:
        left, right = _operands(frame, index)
        if reverse:
            left, right = right, left
        dtype = frame.dtype
        if frame.arg(2, "alpha", 1) != 1 and name in ("add", "sub"):
            raise GiveUp("alpha is not 1")
        if dtype == torch.bool:
            if not (isinstance(left, Bool) and isinstance(right, Bool)):
                raise GiveUp(f"'{name}' of truth values and numbers")
            if name in ("mul", "minimum"):
                return conjunction([left, right])
            if name in ("add", "maximum"):
                return disjunction([left, right])
            raise GiveUp(f"'{name}' of truth values")
        return lift(
            lambda a, b: arithmetic(name, a, b, dtype, frame.facts),
            as_number(left, dtype),
            as_number(right, dtype),
        )

    return run


for _name, _spellings in {
    "add": ("add", "add_", "iadd", "radd"),
    "sub": ("sub", "sub_", "isub", "subtract"),
    "mul": ("mul", "mul_", "imul", "rmul", "multiply"),
    "truediv": ("truediv", "itruediv", "true_divide", "div_"),
    "minimum": ("minimum",),
    "maximum": ("maximum",),
}.items():
    rule(*_spellings)(_arithmetic_rule(_name))
rule("rsub")(_arithmetic_rule("sub", reverse=True))


@rule("floordiv", "floor_divide", "ifloordiv")
def floor_division(frame: Frame, index: Index) -> Element:
    """Integer division that rounds towards minus infinity."""
    if frame.dtype not in WIDE_INTS:
        raise GiveUp("floor division that is not of integers")
    left, right = (as_number(e, frame.dtype) for e in _operands(frame, index))

    def divide(a: Element, b: Element) -> Element:
        if not (
            isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr) and frame.facts.never_negative(b - 1)
        ):
            raise GiveUp("division by something that may not be positive")
        return FloorDivide(sympy.expand(a), b)

    return lift(divide, left, right)


@rule("div", "divide")
def division(frame: Frame, index: Index) -> Element:
    """Division with or without a rounding mode."""
    mode = frame.node.kwargs.get("rounding_mode")
    if mode == "floor":
        return floor_division(frame, index)
    if mode is not None:
        raise GiveUp(f"division with rounding mode {mode}")
    return _arithmetic_rule("truediv")(frame, index)


@rule("neg", "negative")
def negative(frame: Frame, index: Index) -> Element:
    """-x"""
    value = frame.broadcast(frame.tensor(), index)
    zero: Element = Real(0.0) if frame.dtype.is_floating_point else sympy.Integer(0)
    return lift(lambda a: arithmetic("sub", zero, a, frame.dtype, frame.facts), as_number(value, frame.dtype))


def _comparison_rule(name: str) -> Rule:
    def run(frame: Frame, index: Index) -> Element:
        left, right = _operands(frame, index)
        if isinstance(left, Flag) and isinstance(right, Flag) and left != right:
            raise GiveUp("two bool tensors are compared")
        if isinstance(left, Bool) or isinstance(right, Bool):
            left, right = as_number(left, torch.int64), as_number(right, torch.int64)
        return lift(lambda a, b: compare(name, a, b, frame.facts), left, right)

    return run


for _name, _spellings in {
    "eq": ("eq",),
    "ne": ("ne", "not_equal"),
    "lt": ("lt", "less"),
    "le": ("le", "less_equal"),
    "gt": ("gt", "greater"),
    "ge": ("ge", "greater_equal"),
}.items():
    rule(*_spellings)(_comparison_rule(_name))


def _truth(frame: Frame, element: Element, value: Any) -> Bool:
    """An element of the argument ``value`` as a truth value."""
    truth = cast(element, frame.dtype_of(value), torch.bool, frame.facts)
    if not isinstance(truth, Bool):
        raise GiveUp("a truth value that is not known when compiling")
    return truth


def _logic_rule(combine: Callable[[list[Bool]], Bool], bitwise: bool) -> Rule:
    def run(frame: Frame, index: Index) -> Element:
        if bitwise and frame.dtype != torch.bool:
            raise GiveUp("bitwise operation on integers")
        elements = []
        for position, name in enumerate(("input", "other")):
            value = frame.arg(position, name)
            elements.append(_truth(frame, frame.broadcast(value, index), value))
        return combine(elements)

    return run


def _exclusive(terms: list[Bool]) -> Bool:
    left, right = terms
    return disjunction([conjunction([left, negation(right)]), conjunction([negation(left), right])])


for _names, _combine in (
    (("and_", "and", "iand", "rand", "bitwise_and", "bitwise_and_"), conjunction),
    (("or_", "or", "ior", "ror", "bitwise_or", "bitwise_or_"), disjunction),
    (("xor", "ixor", "rxor", "bitwise_xor", "bitwise_xor_"), _exclusive),
):
    rule(*_names)(_logic_rule(_combine, bitwise=True))
rule("logical_and", "logical_and_")(_logic_rule(conjunction, bitwise=False))
rule("logical_or", "logical_or_")(_logic_rule(disjunction, bitwise=False))
rule("logical_xor", "logical_xor_")(_logic_rule(_exclusive, bitwise=False))


@rule("invert", "inv", "bitwise_not", "bitwise_not_", "logical_not", "logical_not_")
def logical_not(frame: Frame, index: Index) -> Element:
    """not x; on integers ``~`` is something else."""
    source = frame.tensor()
    if frame.dtype != torch.bool:
        raise GiveUp("bitwise negation of integers")
    return negation(_truth(frame, frame.read(source, index), source))


@rule(
    "to", "type", "type_as", "bool", "int", "long", "float", "half", "bfloat16", "double", "_to_copy", "short"
)
def conversion(frame: Frame, index: Index) -> Element:
    """A change of dtype or device; the result's dtype is in the metadata."""
    source = frame.tensor()
    return cast(frame.read(source, index), frame.dtype_of(source), frame.dtype, frame.facts)


@rule("where", "_where")
def where(frame: Frame, index: Index) -> Element:
    """then where condition else other"""
    if len(frame.node.args) + len(frame.node.kwargs) < 3:
        raise GiveUp("where with one argument")
    condition, then, other = frame.arg(0, "condition"), frame.arg(1, "input"), frame.arg(2, "other")
    if frame.node.op == "call_method":
        condition, then = then, condition
    test = _truth(frame, frame.broadcast(condition, index), condition)
    return _chosen(frame, index, test, then, other)


def _chosen(frame: Frame, index: Index, test: Bool, then: Any, other: Any) -> Element:
    """The branch that ``test`` picks, converted to the result's dtype; only needed branches are read."""
    converted = []
    for value, needed in ((then, test != FALSE), (other, test != TRUE)):
        if needed:
            element = frame.broadcast(value, index)
            converted.append(cast(element, frame.dtype_of(value), frame.dtype, frame.facts))
    return frame.select(test, converted[0], converted[-1])


@rule("masked_fill", "masked_fill_")
def masked_fill(frame: Frame, index: Index) -> Element:
    """value where mask else x"""
    mask = frame.arg(1, "mask")
    test = _truth(frame, frame.broadcast(mask, index), mask)
    return _chosen(frame, index, test, frame.arg(2, "value"), frame.tensor())


@rule("clamp", "clip", "clamp_min", "clamp_max", "clamp_")
def clamp(frame: Frame, index: Index) -> Element:
    """Bounds from below and above."""
    if calls(frame.node, "clamp_min", "clamp_max"):
        raise GiveUp(f"{describe(frame.node)} is not understood")
    element = as_number(frame.read(frame.tensor(), index), frame.dtype)
    for bound, function in ((frame.arg(1, "min"), "maximum"), (frame.arg(2, "max"), "minimum")):
        if bound is not None:
            limit = cast(frame.broadcast(bound, index), frame.dtype_of(bound), frame.dtype, frame.facts)
            element = lift(
                lambda a, b, f=function: arithmetic(f, a, b, frame.dtype, frame.facts), element, limit
            )
    return element
