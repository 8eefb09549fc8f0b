"""Additive float masks: which entries are 0, and how the others are masked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import sympy
import torch

from .expression import (
    FALSE,
    TRUE,
    Bool,
    Case,
    Element,
    Eq0,
    Real,
    Rounded,
    Unknown,
    choose,
    conjunction,
    negation,
)


class IsBias(Exception):
    """An entry is neither 0 nor masked: the mask is a bias. Holds the entry."""

    def __init__(self, entry: Element):
        super().__init__(str(entry))
        self.entry = entry


@dataclass
class AdditiveMask:
    """Reads an additive mask of one dtype; ``masked_values`` collects how entries are masked."""

    dtype: torch.dtype
    masked_values: set[str] = field(default_factory=set)

    def allowed(self, element: Element, known: tuple[Bool, ...] = ()) -> Bool:
        """Where the element is exactly 0, given that ``known`` holds. Raises IsBias."""
        if isinstance(element, Case):
            then = self.allowed(element.then, (*known, element.condition))
            other = self.allowed(element.other, (*known, negation(element.condition)))
            result = choose(element.condition, then, other)
            assert isinstance(result, Bool)
            return result
        if isinstance(element, Real):
            return self._constant(element)
        if isinstance(element, Rounded | sympy.Expr) and not isinstance(element, Unknown):
            expr = element.expr if isinstance(element, Rounded) else element
            facts = conjunction(known)
            if any(
                Eq0(e) == fact for fact in _terms(facts) for e in (sympy.expand(expr), sympy.expand(-expr))
            ):
                return TRUE
        raise IsBias(element)

    def _constant(self, entry: Real) -> Bool:
        if entry.value == 0:
            return TRUE
        if entry.value == -math.inf:
            self.masked_values.add("-inf")
            return FALSE
        if entry.value <= torch.finfo(self.dtype).min:
            self.masked_values.add("finfo.min")
            return FALSE
        raise IsBias(entry)


def _terms(term: Bool) -> frozenset[Bool]:
    return getattr(term, "terms", frozenset([term]))
