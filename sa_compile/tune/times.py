"""What rules cost, from densities that the harness measured and times that ``tune`` measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from sa_compile.eval.report import Results
from sa_compile.eval.statistics import paired_ratio
from sa_compile.eval.tasks.documents import PLACES

NOTE = (
    "Milliseconds of a forward pass's attentions: density times the block-sparse op's time with every causal "
    "block kept, and selection, as `tune` measured them ({where}). Selection is known for the rules that are "
    "ops of this library; for the others the total is a lower bound. Worst place: accuracy relative to full "
    "attention."
)


def time_table(results: Results, profiles: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a rule and length that a profile has times of; empty without such a length."""
    costs = {cost["length"]: cost for profile in profiles for cost in profile["costs"]}
    rows = [row for length in results.lengths if length in costs for row in _rows(results, costs[length])]
    headers = ["length", "rule", "density", "worst place", "text NLL", "selection", "attention", "total"]
    headers.append("dense / total")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) if rows else ""


def note(profiles: Sequence[Mapping[str, Any]]) -> str:
    """Where the times come from."""
    where = {f"{p['provenance']['device']}, `{p['provenance']['revision']}`" for p in profiles}
    return NOTE.format(where="; ".join(sorted(where)))


def _rows(results: Results, cost: Mapping[str, Any]) -> Iterator[list[str]]:
    length, plan = cost["length"], results.result["plan"]
    blocks = f"{plan['block_q']}x{plan['block_k']}"
    for rule in results.rules:
        if rule == "full" or not results.lines(rule, length):
            continue
        means = results.means(rule, length)
        attention = means["density"] * cost["block_ms"][blocks]
        selection = cost["selection_ms"].get(_timed_as(rule, results.result["settings"][rule], blocks))
        total = attention + (selection or 0.0)
        bound, faster = ("", "") if selection is not None else (">= ", "<= ")
        yield [
            f"{length // 1024}K",
            rule,
            f"{means['density']:.3f}",
            f"{_worst_place(results, rule, length):.3f}",
            f"{means['nll']:+.4f}",
            "-" if selection is None else f"{selection:.2f}",
            f"{attention:.2f}",
            f"{bound}{total:.2f}",
            f"{faster}{cost['dense_ms'] / total:.2f}",
        ]


def _timed_as(rule: str, settings: Mapping[str, Any], blocks: str) -> str:
    """The key of a rule's selection among a profile's costs (``space.Candidate.timed_as``)."""
    name = rule.partition(":")[0]
    options = {"adaptive": "landmarks", "chunked": "chunk_n", "stride": "r_row"}
    if name not in options:
        return ""
    return f"{name} {options[name]}={settings[options[name]]} {blocks}"


def _worst_place(results: Results, rule: str, length: int) -> float:
    ratios = []
    for place in PLACES:
        _, right, full = results.counts(rule, length, results.solved(length, place), place)
        ratios.append(paired_ratio(right, full)[0])
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    return min(known) if known else math.nan
