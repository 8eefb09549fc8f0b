"""What rules cost: densities that the harness measured by times that ``tune`` and ``rule-costs`` measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from sa_compile.eval.report import Results
from sa_compile.eval.tasks.documents import PLACES
from sa_compile.tune.space import FAMILIES, blocks_text

NOTE = (
    "Milliseconds of a forward pass's attentions: density times the block-sparse op's time with every causal "
    "block kept, and selection (of `adaptive` with what the means of dropped blocks cost), as `tune` "
    "measured them ({where}). Selection of other rules, in plain PyTorch, is what `rule-costs` measured; "
    "what they are made to keep beside costs nothing. Where it is not known, the total is a lower bound. "
    "Worst place: accuracy relative to full attention."
)


def time_table(results: Results, profiles: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a rule and length that a profile has times of; empty without such a length."""
    costs: dict[int, dict[str, Any]] = {}
    for cost in (cost for profile in profiles for cost in profile["costs"]):
        costs.setdefault(cost["length"], {}).update(cost)
    timed = [length for length in results.lengths if "dense_ms" in costs.get(length, {})]
    rows = [row for length in timed for row in _rows(results, costs[length])]
    headers = ["length", "rule", "density", "worst place", "text NLL", "selection", "attention", "total"]
    headers.append("dense / total")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) if rows else ""


def note(profiles: Sequence[Mapping[str, Any]]) -> str:
    """Where the times come from."""
    where = {f"{p['provenance']['device']}, `{p['provenance']['revision']}`" for p in profiles}
    return NOTE.format(where="; ".join(sorted(where)))


def _rows(results: Results, cost: Mapping[str, Any]) -> Iterator[list[str]]:
    length, plan = cost["length"], results.result["plan"]
    blocks = blocks_text((plan["block_q"], plan["block_k"]))
    families = {family.method: family for family in FAMILIES}
    for rule in results.rules:
        if rule == "full" or not results.lines(rule, length):
            continue
        means = results.means(rule, length)
        places = (results.kept(rule, length, results.solved(length, place), place) for place in PLACES)
        kept = [share for share in places if not math.isnan(share)]
        attention = means["density"] * cost["block_ms"][blocks]
        base, forced, _ = rule.partition("+")
        family = families.get(base.partition(":")[0])
        selection = None
        if family is not None:
            settings = results.result["settings"][rule]
            timed_as = family.timed_as(settings["rule"] if forced else settings, blocks)
            selection = cost["selection_ms"].get(timed_as)
        else:
            selection = cost.get("rule_ms", {}).get(base)
        total = attention + (selection or 0.0)
        bound, faster = ("", "") if selection is not None else (">= ", "<= ")
        yield [
            f"{length // 1024}K",
            rule,
            f"{means['density']:.3f}",
            f"{min(kept, default=math.nan):.3f}",
            f"{means['nll']:+.4f}",
            "-" if selection is None else f"{selection:.2f}",
            f"{attention:.2f}",
            f"{bound}{total:.2f}",
            f"{faster}{cost['dense_ms'] / total:.2f}",
        ]
