"""Selection rules behind one interface, and the strings that name them.

A rule's string is its name with settings after a colon, and what is forced after plus signs::

    full    oracle:alpha=0.98    chunked:alpha=0.9,chunk_n=2    xattention:stride=8,tau=0.95+sink+w2
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from sa_compile.methods import METHODS

from .base import Problem as Problem
from .base import Rule as Rule
from .fixed import BigBird, Full, StreamingLLM
from .flashprefill import FlashPrefill
from .flexprefill import FlexPrefill
from .forced import Forced as Forced
from .forced import forced as forced
from .hashing import HashSparse, HyperAttention
from .methods import Adaptive, Chunked, Stride, rule_of
from .minference import MInference
from .oracle import Oracle
from .xattention import XAttention

_RULES: tuple[type[Rule], ...] = (
    Full,
    Oracle,
    Chunked,
    Stride,
    Adaptive,
    StreamingLLM,
    BigBird,
    HyperAttention,
    HashSparse,
    MInference,
    FlexPrefill,
    XAttention,
    FlashPrefill,
)
RULES: dict[str, type[Rule]] = {rule.name: rule for rule in _RULES}


def kind_of(name: str) -> type[Rule]:
    """The class of the rule of this name; a method that was registered has one too. ValueError if unknown."""
    if name in RULES:
        return RULES[name]
    if name in METHODS:
        return rule_of(METHODS[name])
    raise ValueError(f"unknown selection rule {name!r}; known: {', '.join({**RULES, **METHODS})}")


def parse_rule(spec: str) -> Rule:
    """The rule that a string such as ``"xattention:stride=8,tau=0.95+sink+w2"`` names.

    ``+sink`` forces the sink block, ``+wN`` N block diagonals, ``+lastN`` all blocks of
    the last N rows. ValueError for an unknown rule or setting, or a value of the wrong kind; it names what is
    known. A setting that others leave without effect is a warning.
    """
    text, *extras = spec.split("+")
    name, _, described = text.partition(":")
    kind = kind_of(name)
    settings = _settings(kind, described)
    rule = kind(**settings)
    for setting, other in rule.unread().items():
        if setting in settings:
            warnings.warn(
                f"rule {spec!r}: {setting} has no effect with {other}={getattr(rule, other)!r}", stacklevel=2
            )
    return _with_forced(rule, extras, spec) if extras else rule


def settings_of(spec: str) -> dict[str, Any]:
    """All settings of the rule that a string names, which leaves out those at their defaults."""
    return dataclasses.asdict(parse_rule(spec))  # type: ignore[call-overload]


def _settings(kind: type[Rule], text: str) -> dict[str, object]:
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in fields:
            raise ValueError(
                f"unknown setting {name!r} of rule {kind.name!r}; known: {', '.join(fields) or 'none'}"
            )
        values[name] = _value(value, type(fields[name].default), f"{kind.name}:{name}")
    return values


def _value(text: str, kind: type, where: str) -> object:
    try:
        if kind is bool:
            return {"0": False, "1": True}[text]
        return kind(text)
    except (ValueError, KeyError):
        allowed = "0 or 1" if kind is bool else f"of type {kind.__name__}"
        raise ValueError(f"{where} must be {allowed}, got {text!r}") from None


def _with_forced(rule: Rule, extras: list[str], spec: str) -> Rule:
    sink, counts = False, {"w": 0, "last": 0}
    for extra in extras:
        kind = extra.rstrip("0123456789")
        if extra == "sink":
            sink = True
        elif kind in counts and extra != kind:
            counts[kind] = int(extra[len(kind) :])
        else:
            raise ValueError(f"after '+' comes 'sink', 'wN' or 'lastN', got {extra!r} in {spec!r}")
    return forced(rule, sink=sink, window_blocks=counts["w"], last_rows=counts["last"])
