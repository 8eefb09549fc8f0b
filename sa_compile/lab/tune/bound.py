"""The bound on accuracy that tuned settings keep, and what calibration documents say of a setting.

Three measures against full attention on the same documents: ``accuracy``, relative accuracy on the tasks that
full attention solves, in the worst of the places where questions stand; ``nll``, the change of the text's
negative log-likelihood, in nats a token; ``agreement``, the share of the text's positions where the most
likely token is the same. Models that do not know the tasks are bounded by the last two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sa_compile.lab.eval.plan import FACTS
from sa_compile.lab.eval.report import SOLVED, Results
from sa_compile.lab.eval.statistics import mean_interval, paired_ratio

DEFAULTS = {"accuracy": 0.99, "nll": 0.01, "agreement": 0.98}


@dataclass(frozen=True)
class Bound:
    """Least accuracy and agreement, greatest change of NLL; None: not asked for."""

    accuracy: float | None
    nll: float | None
    agreement: float | None

    def __str__(self) -> str:
        parts = []
        if self.accuracy is not None:
            parts.append(f"accuracy on solved tasks >= {self.accuracy:g} of full attention's, in every place")
        if self.nll is not None:
            parts.append(f"change of text NLL <= {self.nll:+g}")
        if self.agreement is not None:
            parts.append(f"same most likely token as full attention >= {self.agreement:g}")
        return ", ".join(parts)


def parse_bound(texts: Iterable[str]) -> dict[str, float]:
    """Measures and values from ``accuracy=0.99 nll=0.01``. ValueError names what is allowed."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in DEFAULTS or not equals:
            allowed = ", ".join(f"{name}=NUMBER" for name in DEFAULTS)
            raise ValueError(f"--bound takes {allowed}, got {text!r}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--bound {name} must be a number, got {value!r}") from None
        if not math.isfinite(found[name]):
            raise ValueError(f"--bound {name} must be finite, got {value!r}")
    return found


def bound_for(results: Results, length: int, asked: dict[str, float]) -> Bound:
    """The bound as asked for, or what fits the model: tasks and NLL if full attention solves a task, else
    NLL and agreement. ValueError if accuracy was asked for and no task is solved."""
    solved = any(results.solved(length, place) for place in results.result["plan"]["places"])
    if not solved and "accuracy" in asked:
        raise ValueError(
            f"--bound accuracy: full attention solves none of the tasks at {length} tokens (at least "
            f"{SOLVED:.0%} right); use nll and agreement, or more documents"
        )
    names = asked or {
        name: DEFAULTS[name] for name in (("accuracy", "nll") if solved else ("nll", "agreement"))
    }
    return Bound(*(names.get(name) for name in ("accuracy", "nll", "agreement")))


@dataclass(frozen=True)
class Evidence:
    """What a rule does on the documents scored so far, against full attention; NaN: nothing to measure."""

    documents: int
    density: float
    accuracy: float
    nll: float
    agreement: float

    def keeps(self, bound: Bound) -> bool:
        """Whether everything that the bound asks for was measured and lies within it."""
        return all(
            (
                bound.accuracy is None or self.accuracy >= bound.accuracy,
                bound.nll is None or self.nll <= bound.nll,
                bound.agreement is None or self.agreement >= bound.agreement,
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: rounded, NaN as None."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else round(value, 5)
            for name, value in vars(self).items()
        }


def evidence(results: Results, rule: str, length: int) -> Evidence:
    """Everything measured of ``rule`` at a length."""
    pairs = _pairs(results, rule, length)
    ratios = (right.sum() / full.sum() for right, full in _counts(results, rule, length))
    return Evidence(
        len(pairs),
        _mean(own["density"] for own, _ in pairs),
        float(min(ratios, default=math.nan)),
        _mean(own["nll"] - full["nll"] for own, full in pairs),
        _mean(own["agree"] for own, _ in pairs if own["agree"] is not None),
    )


def best_case(results: Results, rule: str, length: int) -> Evidence:
    """The same with the favourable end of each measure's 95 % interval: what a few documents do not rule out.

    Of one document, which says nothing of how much others differ, the measures themselves.
    """
    found = evidence(results, rule, length)
    pairs = _pairs(results, rule, length)
    highest = (paired_ratio(right, full)[2] for right, full in _counts(results, rule, length))
    agreements = [own["agree"] for own, _ in pairs if own["agree"] is not None]
    return replace(
        found,
        accuracy=min(highest, default=math.nan),
        nll=found.nll - _half_width([own["nll"] - full["nll"] for own, full in pairs]),
        agreement=found.agreement + _half_width(agreements),
    )


def _pairs(results: Results, rule: str, length: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The rule's lines of all documents, each with that of full attention."""
    kinds = (FACTS, *results.result["plan"]["domains"])
    return [pair for kind in kinds for pair in results.lines(rule, length, kind)]


def _counts(results: Results, rule: str, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each place with solved tasks, right answers a document: the rule's and full attention's."""
    for place in results.result["plan"]["places"]:
        _, right, full = results.counts(rule, length, results.solved(length, place), place)
        if full.sum():
            yield right, full


def _half_width(values: Sequence[float]) -> float:
    """Of the mean's 95 % interval."""
    return mean_interval(np.array(values))[1] if len(values) > 1 else 0.0


def _mean(values: Iterable[float]) -> float:
    there = list(values)
    return float(np.mean(there)) if there else math.nan
