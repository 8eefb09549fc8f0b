"""Rules of element-wise operations: arithmetic, comparisons, logic, casts, choices."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef

from .expression import (
    FALSE,
    TRUE,
    Bool,
    Element,
    Flag,
    FloorDivide,
    Real,
    Rounded,
    Truth,
    Unknown,
    choose,
    conjunction,
    disjunction,
    lift,
    negation,
)
from .facts import Facts
from .interpreter import Frame, GiveUp, Index, Rule, rule

# Integers up to this size are exact in every float dtype, and other integers are never rounded to one of them.
_EXACT_IN_ALL = 256
_WIDE_INTS = (torch.int32, torch.int64)


def round_to(value: float | int, dtype: torch.dtype) -> float:
    """The constant as a float dtype holds it."""
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


def as_number(element: Element, dtype: torch.dtype) -> Element:
    """The element with truth values turned into 1 and 0."""
    if isinstance(element, Bool):
        one: Element = Real(1.0) if dtype.is_floating_point else sympy.Integer(1)
        zero: Element = Real(0.0) if dtype.is_floating_point else sympy.Integer(0)
        return choose(element, one, zero)
    return element


def integer_in_float(expr: sympy.Expr, dtype: torch.dtype, facts: Facts) -> Element:
    """An integer held by a float dtype: exact if it is certainly small enough."""
    if expr.is_Integer:
        return Real(round_to(int(expr), dtype))
    limit = int(2 / torch.finfo(dtype).eps)
    if facts.never_positive(expr - limit) and facts.never_negative(expr + limit):
        return expr
    return Rounded(expr)


def cast(element: Element, source: torch.dtype, target: torch.dtype, facts: Facts) -> Element:
    """The element converted to another dtype. Raises GiveUp where the result is not known."""
    if source == target:
        return element
    if target == torch.bool:
        return element if isinstance(element, Bool) else lift(lambda e: is_nonzero(e, facts), element)
    return lift(lambda e: _cast_number(e, source, target, facts), as_number(element, target))


def _cast_number(element: Element, source: torch.dtype, target: torch.dtype, facts: Facts) -> Element:
    if target.is_complex:
        raise GiveUp("complex numbers")
    if isinstance(element, Unknown):
        raise GiveUp("the value is not known when compiling")
    if target.is_floating_point:
        if isinstance(element, Real):
            return Real(round_to(element.value, target))
        if isinstance(element, Rounded):
            return element
        return integer_in_float(element, target, facts)
    if isinstance(element, Rounded):
        raise GiveUp("a float of unknown size is converted to an integer")
    if isinstance(element, Real):
        if not math.isfinite(element.value):
            raise GiveUp("an infinite float is converted to an integer")
        element = sympy.Integer(int(element.value))
    info = torch.iinfo(target)
    if element.is_Integer:
        if not info.min <= int(element) <= info.max:
            raise GiveUp("integer overflow")
        return element
    fits = target in _WIDE_INTS and (source == torch.int32 or target == torch.int64 or not element.has(AppliedUndef))
    bounded = facts.never_positive(element - info.max) and facts.never_negative(element - info.min)
    if source.is_floating_point or not (fits or bounded):
        raise GiveUp(f"an integer of unknown size is converted to {target}")
    return element


def is_nonzero(element: Element, facts: Facts) -> Bool:
    """element != 0"""
    return compare("ne", element, sympy.Integer(0), facts)


def compare(name: str, left: Element, right: Element, facts: Facts) -> Bool:
    """A comparison (eq, ne, lt, le, gt, ge) of two elements that are not choices."""
    if isinstance(left, Real) and isinstance(right, Real):
        return Truth(bool(getattr(operator, name)(left.value, right.value)))
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        raise GiveUp("a float that is not known when compiling is compared")
    if isinstance(left, Real) or (isinstance(right, Rounded) and not isinstance(left, Rounded)):
        swapped = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}.get(name, name)
        return compare(swapped, right, left, facts)
    if isinstance(left, Rounded):
        left = _exactly_comparable(left, right)
    if isinstance(right, Real):
        return _compare_with_float(name, left, right.value, facts)
    if isinstance(left, Rounded) or isinstance(right, Rounded):
        raise GiveUp("rounded integers are compared")
    difference = left - right
    if name == "le":
        return facts.less_equal_zero(difference)
    if name == "lt":
        return facts.less_equal_zero(difference + 1)
    if name == "ge":
        return facts.less_equal_zero(-difference)
    if name == "gt":
        return facts.less_equal_zero(1 - difference)
    equal = facts.equals_zero(difference)
    return equal if name == "eq" else negation(equal)


def _exactly_comparable(left: Rounded, right: Element) -> Element:
    """The integer behind a rounded one, if comparing it with ``right`` gives the same answer."""
    if isinstance(right, Real) and abs(right.value) <= _EXACT_IN_ALL:
        return left.expr
    if isinstance(right, sympy.Expr) and right.is_Integer and abs(int(right)) <= _EXACT_IN_ALL:
        return left.expr
    return left


def _compare_with_float(name: str, left: Element, value: float, facts: Facts) -> Bool:
    if isinstance(left, Rounded):
        raise GiveUp("a rounded integer is compared with a large constant")
    if abs(value) > _EXACT_IN_ALL:
        raise GiveUp("an integer is compared with a large float")
    if value == math.floor(value):
        return compare(name, left, sympy.Integer(int(value)), facts)
    if name in ("eq", "ne"):
        return Truth(name == "ne")
    # Between two integers: n < 0.5 is n <= 0, n > 0.5 is n >= 1.
    below = name in ("lt", "le")
    bound = sympy.Integer(math.floor(value) if below else math.ceil(value))
    return compare("le" if below else "ge", left, bound, facts)


_FLOAT_FUNCTIONS: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "truediv": torch.true_divide,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
}


def arithmetic(name: str, left: Element, right: Element, dtype: torch.dtype, facts: Facts) -> Element:
    """add, sub, mul, truediv, minimum or maximum of two numbers that are not choices, as ``dtype`` computes it."""
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        raise GiveUp("arithmetic on a float that is not known when compiling")
    if dtype.is_floating_point:
        return _float_arithmetic(name, left, right, dtype, facts)
    if isinstance(left, Rounded | Real) or isinstance(right, Rounded | Real):
        raise GiveUp("a float in integer arithmetic")
    if name in ("minimum", "maximum"):
        if facts.never_positive(left - right):
            return left if name == "minimum" else right
        if facts.never_negative(left - right):
            return right if name == "minimum" else left
        raise GiveUp(f"{name} of two integers that can not be ordered")
    if name == "truediv":
        raise GiveUp("division of integers")
    result = sympy.expand({"add": operator.add, "sub": operator.sub, "mul": operator.mul}[name](left, right))
    if dtype not in _WIDE_INTS:
        info = torch.iinfo(dtype)
        if not (facts.never_positive(result - info.max) and facts.never_negative(result - info.min)):
            raise GiveUp(f"{dtype} arithmetic that may overflow")
    return result


def _float_arithmetic(name: str, left: Element, right: Element, dtype: torch.dtype, facts: Facts) -> Element:
    constants = [_constant(left), _constant(right)]
    if all(c is not None for c in constants):
        operands = [torch.tensor(c, dtype=torch.float64).to(dtype) for c in constants]
        return Real(_FLOAT_FUNCTIONS[name](*operands).item())
    if name not in ("add", "sub"):
        raise GiveUp(f"'{name}' of numbers that are not known when compiling")
    small = any(c is not None and c == math.floor(c) and abs(c) <= _EXACT_IN_ALL for c in constants)
    if not small:
        raise GiveUp("float arithmetic on integers of unknown size")
    terms = [
        t.expr if isinstance(t, Rounded) else t if c is None else sympy.Integer(int(c))
        for t, c in zip((left, right), constants, strict=True)
    ]
    result = sympy.expand(terms[0] + terms[1] if name == "add" else terms[0] - terms[1])
    return integer_in_float(result, dtype, facts)


def _constant(element: Element) -> float | None:
    if isinstance(element, Real):
        return element.value
    if isinstance(element, sympy.Expr) and element.is_Integer:
        return float(int(element))
    return None


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
    if frame.dtype not in _WIDE_INTS:
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


def _logic_rule(combine: Callable[[list[Bool]], Bool], bitwise: bool) -> Rule:
    def run(frame: Frame, index: Index) -> Element:
        if bitwise and frame.dtype != torch.bool:
            raise GiveUp("bitwise operation on integers")
        elements = []
        for position, name in enumerate(("input", "other")):
            value = frame.arg(position, name)
            element = frame.broadcast(value, index)
            elements.append(cast(element, frame.dtype_of(value), torch.bool, frame.facts))
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
    return negation(cast(frame.read(source, index), frame.dtype_of(source), torch.bool, frame.facts))


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
    test = cast(frame.broadcast(condition, index), frame.dtype_of(condition), torch.bool, frame.facts)
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
    test = cast(frame.broadcast(mask, index), frame.dtype_of(mask), torch.bool, frame.facts)
    return _chosen(frame, index, test, frame.arg(2, "value"), frame.tensor())


@rule("clamp", "clip", "clamp_min", "clamp_max", "clamp_")
def clamp(frame: Frame, index: Index) -> Element:
    """Bounds from below and above."""
    name = str(frame.node.target)
    if name in ("clamp_min", "clamp_max"):
        raise GiveUp(f"{name} is not understood")
    element = as_number(frame.read(frame.tensor(), index), frame.dtype)
    for bound, function in ((frame.arg(1, "min"), "maximum"), (frame.arg(2, "max"), "minimum")):
        if bound is not None:
            limit = cast(frame.broadcast(bound, index), frame.dtype_of(bound), frame.dtype, frame.facts)
            element = lift(
                lambda a, b, f=function: arithmetic(f, a, b, frame.dtype, frame.facts), element, limit
            )
    return element
