"""Numbers of tokens, as command lines take them and tables show them."""

from __future__ import annotations

import argparse

_UNITS = {"K": 1 << 10, "M": 1 << 20}


def length_from(text: str) -> int:
    """The length that a command line names: "4096", "8K", "1M". An argparse error names what came."""
    number, unit = (text[:-1], _UNITS[text[-1].upper()]) if text[-1:].upper() in _UNITS else (text, 1)
    if not (number.isascii() and number.isdigit()) or int(number) < 1:
        raise argparse.ArgumentTypeError(f"a length must be a number, or one with K or M behind it: {text!r}")
    return int(number) * unit


def lengths_from(text: str) -> list[int]:
    """Several, separated by commas."""
    return [length_from(part) for part in text.split(",")]


def length_text(length: int) -> str:
    """As tables have it: 512, 32K, 1M."""
    fits = (name for name, unit in reversed(_UNITS.items()) if length and length % unit == 0)
    name = next(fits, "")
    return f"{length // _UNITS.get(name, 1)}{name}"
