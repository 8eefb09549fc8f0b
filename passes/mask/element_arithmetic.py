"""What operations do to single elements: casts, comparisons and arithmetic, exact or not at all."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef

from .expression import Bool, Case, Element, Real, Rounded, Truth, Unknown, choose, lift, negation
from .facts import Facts
from .interpreter import GiveUp

# Integers up to this size are exact in every float dtype that is understood, and no other is rounded to less.
# So ``float(n) + c`` compares with ``t`` as ``n + c`` does, as long as the sizes of c and t add up to less.
_EXACT_IN_ALL = 256
_COARSEST_EPS = 2 / _EXACT_IN_ALL
WIDE_INTS = (torch.int32, torch.int64)


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
    if torch.finfo(dtype).eps > _COARSEST_EPS:
        raise GiveUp(f"integers in {dtype}")
    # Exclusive: a larger integer that is rounded for a comparison must not become this one.
    limit = int(2 / torch.finfo(dtype).eps) - 1
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


def _expression(element: Element) -> sympy.Expr:
    """An integer element as the expression that it is."""
    if isinstance(element, Bool | Real | Rounded | Unknown | Case):
        raise GiveUp("something else than an integer in integer arithmetic")
    return element


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
    element = _expression(element)
    info = torch.iinfo(target)
    if element.is_Integer:
        if not info.min <= int(element) <= info.max:
            raise GiveUp("integer overflow")
        return element
    fits = target in WIDE_INTS and (
        source == torch.int32 or target == torch.int64 or not element.has(AppliedUndef)
    )
    bounded = facts.never_positive(element - info.max) and facts.never_negative(element - info.min)
    if source.is_floating_point or source == torch.uint64 or not (fits or bounded):
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
    difference = _expression(left) - _expression(right)
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
    constant = _constant(right)
    if constant is not None and left.moved + abs(constant) < _EXACT_IN_ALL:
        return left.expr
    return left


def _compare_with_float(name: str, left: Element, value: float, facts: Facts) -> Bool:
    if isinstance(left, Rounded):
        raise GiveUp("a rounded integer is compared with a large constant")
    if not abs(value) < _EXACT_IN_ALL:
        raise GiveUp("an integer is compared with a large float")
    if value == math.floor(value):
        return compare(name, left, sympy.Integer(int(value)), facts)
    if round_to(value, torch.bfloat16) == round(round_to(value, torch.bfloat16)):
        raise GiveUp("an integer is compared with a float that is nearly one")
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
    """add, sub, mul, truediv, minimum or maximum of two numbers (no choices), as ``dtype`` computes it."""
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        raise GiveUp("arithmetic on a float that is not known when compiling")
    if dtype.is_floating_point:
        return _float_arithmetic(name, left, right, dtype, facts)
    if isinstance(left, Rounded | Real) or isinstance(right, Rounded | Real):
        raise GiveUp("a float in integer arithmetic")
    left, right = _expression(left), _expression(right)
    if name in ("minimum", "maximum"):
        if facts.never_positive(left - right):
            return left if name == "minimum" else right
        if facts.never_negative(left - right):
            return right if name == "minimum" else left
        raise GiveUp(f"{name} of two integers that can not be ordered")
    if name == "truediv":
        raise GiveUp("division of integers")
    result = sympy.expand({"add": operator.add, "sub": operator.sub, "mul": operator.mul}[name](left, right))
    if dtype not in WIDE_INTS:
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
    constant = next((c for c in constants if c is not None), None)
    if constant is None or not abs(constant) < _EXACT_IN_ALL or constant % 1 != 0:
        raise GiveUp("float arithmetic on integers of unknown size")
    terms: list[Any] = [
        t.expr if isinstance(t, Rounded) else t if c is None else sympy.Integer(int(c))
        for t, c in zip((left, right), constants, strict=True)
    ]
    result = sympy.expand(terms[0] + terms[1] if name == "add" else terms[0] - terms[1])
    rounded = next((t for t in (left, right) if isinstance(t, Rounded)), None)
    if rounded is not None:
        return Rounded(result, rounded.moved + int(abs(constant)))
    return integer_in_float(result, dtype, facts)


def _constant(element: Element) -> float | None:
    if isinstance(element, Real):
        return element.value
    if isinstance(element, sympy.Expr) and element.is_Integer:
        return float(int(element))
    return None
