"""The bound on accuracy that tuned settings keep, and what calibration documents say of a setting.

Four measures against full attention on the same documents: ``accuracy``, relative accuracy on the tasks that
full attention solves, in the worst of the places where questions stand; ``nll``, the change of the text's
negative log-likelihood, in nats a token; ``kl``, the divergence of the next token's distribution, in nats;
``agreement``, the share of the text's positions where the most likely token is the same. Those of text are of
the kind of text that has the worst. Models that do not know the tasks are bounded by text alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sa_compile.lab.eval.plan import FACTS
from sa_compile.lab.eval.report import SOLVED, Results
from sa_compile.lab.eval.statistics import mean_interval, paired_ratio

DEFAULTS = {"accuracy": 0.99, "nll": 0.005, "kl": 0.01}  # what the options' defaults were tested for


@dataclass(frozen=True)
class Bound:
    """Least accuracy and agreement, greatest change of NLL and KL; None: not asked for."""

    accuracy: float | None = None
    nll: float | None = None
    kl: float | None = None
    agreement: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.accuracy is not None:
            parts.append(f"accuracy on solved tasks >= {self.accuracy:g} of full attention's, in every place")
        if self.nll is not None:
            parts.append(f"change of NLL on every kind of text <= {self.nll:+g}")
        if self.kl is not None:
            parts.append(f"KL on every kind of text <= {self.kl:g}")
        if self.agreement is not None:
            parts.append(f"same most likely token on every kind of text >= {self.agreement:g}")
        return ", ".join(parts)


_Line = dict[str, Any]  # of a rule and document, as the harness journals it
_MEASURES = tuple(field.name for field in fields(Bound))


def parse_bound(texts: Iterable[str]) -> dict[str, float]:
    """Measures and values from ``accuracy=0.99 nll=0.01``. ValueError names what is allowed."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in _MEASURES or not equals:
            allowed = ", ".join(f"{name}=NUMBER" for name in _MEASURES)
            raise ValueError(f"--bound takes {allowed}, got {text!r}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--bound {name} must be a number, got {value!r}") from None
        if not math.isfinite(found[name]):
            raise ValueError(f"--bound {name} must be finite, got {value!r}")
    return found


def bound_for(results: Results, length: int, asked: dict[str, float]) -> Bound:
    """The bound as asked for, or that of ``DEFAULTS``, without accuracy if full attention solves no task.
    ValueError if accuracy was asked for and no task is solved."""
    solved = any(results.solved(length, place) for place in results.result["plan"]["places"])
    if not solved and "accuracy" in asked:
        raise ValueError(
            f"--bound accuracy: full attention solves none of the tasks at {length} tokens (at least "
            f"{SOLVED:.0%} right); use nll and kl, or more documents"
        )
    if asked:
        return Bound(**asked)
    return Bound(**{name: value for name, value in DEFAULTS.items() if solved or name != "accuracy"})


@dataclass(frozen=True)
class Evidence:
    """What a rule does on the documents scored so far, against full attention; NaN: nothing to measure."""

    documents: int
    density: float
    accuracy: float
    nll: float
    kl: float
    agreement: float

    def keeps(self, bound: Bound) -> bool:
        """Whether everything that the bound asks for was measured and lies within it."""
        return all(
            (
                bound.accuracy is None or self.accuracy >= bound.accuracy,
                bound.nll is None or self.nll <= bound.nll,
                bound.kl is None or self.kl <= bound.kl,
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
    ratios = (right.sum() / full.sum() for right, full in _counts(results, rule, length))
    return _evidence(results, rule, length, min(ratios, default=math.nan), 0.0)


def best_case(results: Results, rule: str, length: int) -> Evidence:
    """The same with the favourable end of each measure's 95 % interval: what a few documents do not rule out.

    Of one document, which says nothing of how much others differ, the measures themselves.
    """
    highest = (paired_ratio(right, full)[2] for right, full in _counts(results, rule, length))
    return _evidence(results, rule, length, min(highest, default=math.nan), 1.0)


def _evidence(results: Results, rule: str, length: int, accuracy: float, widths: float) -> Evidence:
    """With measures of text that many half-widths of their intervals better, in each kind's worst."""
    kinds = [results.lines(rule, length, kind) for kind in (FACTS, *results.result["plan"]["domains"])]
    pairs = [pair for kind in kinds for pair in kind]

    def worst(measure: Callable[[_Line, _Line], float | None], sign: int) -> float:
        means = []
        for kind in kinds:
            values = [value for own, full in kind if (value := measure(own, full)) is not None]
            if values:
                means.append(sign * _mean(values) - widths * _half_width(values))
        return sign * max(means) if means else math.nan

    return Evidence(
        len(pairs),
        _mean([own["density"] for own, _ in pairs]),
        float(accuracy),
        worst(lambda own, full: own["nll"] - full["nll"], 1),
        worst(lambda own, _: own.get("kl"), 1),
        worst(lambda own, _: own["agree"], -1),
    )


def _counts(results: Results, rule: str, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each place with solved tasks, right answers a document: the rule's and full attention's."""
    for place in results.result["plan"]["places"]:
        _, right, full = results.counts(rule, length, results.solved(length, place), place)
        if full.sum():
            yield right, full


def _half_width(values: Sequence[float]) -> float:
    """Of the mean's 95 % interval."""
    return mean_interval(np.array(values))[1] if len(values) > 1 else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
