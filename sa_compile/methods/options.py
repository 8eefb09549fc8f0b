"""How an option is declared: its default, what it is for, and which values it takes.

A check takes the options, the name and the value, and returns the value to hold. Errors, ``TypeError`` for a
wrong type and ``ValueError`` for a value out of range, name the option, what came and what is allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

Check = Callable[[Any, str, Any], Any]


def option(default: Any, help: str, check: Check | None = None, **kwargs: Any) -> Any:
    """A field of a dataclass of options; ``check`` None: any value."""
    return dataclasses.field(default=default, metadata={"help": help, "check": check}, **kwargs)


def fail(name: str, allowed: str, value: Any, error: type[Exception]) -> NoReturn:
    """Raise what is wrong with an option."""
    raise error(f"option {name!r} must be {allowed}, got {value!r}")


def typed(kind: type | tuple[type, ...], allowed: str) -> Check:
    """Values of a type; ``allowed``: which, in words. A bool is no number."""

    def check(options: Any, name: str, value: Any) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            fail(name, allowed, value, TypeError)
        return value

    return check


flag = typed(bool, "a bool")


def one_of(*allowed: Any) -> Check:
    """One of these values."""
    text = "one of " + ", ".join(map(repr, allowed))

    def check(options: Any, name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, type(allowed[0])):
            fail(name, text, value, TypeError)
        if value not in allowed:
            fail(name, text, value, ValueError)
        return value

    return check


def number_in(low: float, high: float, *, above: bool = False) -> Check:
    """A number from ``low`` on (``above``: more than it) to ``high``, held as a float."""
    text = f"{'(' if above else '['}{low}, {high}]"

    def check(options: Any, name: str, value: Any) -> float:
        typed((int, float), f"a number in {text}")(options, name, value)
        if not (low < value if above else low <= value) or not value <= high:
            fail(name, f"in {text}", value, ValueError)
        return float(value)

    return check


def at_least(least: int) -> Check:
    """An int from ``least`` on."""

    def check(options: Any, name: str, value: Any) -> int:
        typed(int, f"an int >= {least}")(options, name, value)
        if value < least:
            fail(name, f">= {least}", value, ValueError)
        return value

    return check


def int_up_to(low: int, limit: str) -> Check:
    """An int from ``low`` to what the option ``limit`` holds."""

    def check(options: Any, name: str, value: Any) -> int:
        text = f"[{low}, {getattr(options, limit)}]"
        typed(int, f"an int in {text}")(options, name, value)
        if not low <= value <= getattr(options, limit):
            fail(name, f"in {text}", value, ValueError)
        return value

    return check


def power_of_two(options: Any, name: str, value: Any) -> int:
    """1, 2, 4, ..."""
    at_least(1)(options, name, value)
    if value & (value - 1):
        fail(name, "a power of two", value, ValueError)
    return int(value)
