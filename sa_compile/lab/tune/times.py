"""What rules cost: densities that the harness measured by times that ``tune`` and ``rule-costs`` measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from sa_compile.lab.eval.report import Results
from sa_compile.lab.eval.tasks.documents import PLACES
from sa_compile.lab.tokens import length_text
from sa_compile.lab.tune.costs import attention_ms
from sa_compile.lab.tune.space import FAMILIES, blocks_text

NOTE = (
    "Milliseconds of a forward pass's attentions: the block-sparse op's at that density, between its times "
    "with every and with a quarter of the causal blocks (of profiles without the latter, density times the "
    "former), and selection with what left-out blocks count for, as `tune` measured them ({where}). "
    "Selection of other rules, in plain PyTorch, is what `rule-costs` measured; what they are made to keep "
    "beside costs nothing. Where it is not known, the total is a lower bound. Worst place: accuracy relative "
    "to full attention."
)


def time_table(results: Results, profiles: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a rule and length that a profile has times of; empty without such a length."""
    rows = [row for cost in _costs(results, profiles).values() for row in _rows(results, cost)]
    headers = ["length", "rule", "density", "worst place", "text NLL", "selection", "attention", "total"]
    headers.append("dense / total")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) if rows else ""


def note(profiles: Sequence[Mapping[str, Any]]) -> str:
    """Where the times come from."""
    where = {f"{p['provenance']['device']}, `{p['provenance']['revision']}`" for p in profiles}
    return NOTE.format(where="; ".join(sorted(where)))


def rule_times(results: Results, profiles: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    """Milliseconds of a forward pass's attentions with selection, by length and rule; of a rule whose
    selection was not timed those of its attention."""
    return {
        (length, rule): _parts(results, rule, cost)[2]
        for length, cost in _costs(results, profiles).items()
        for rule in _timed(results, length)
    }


def _costs(results: Results, profiles: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """What the profiles say of the results' lengths."""
    costs: dict[int, dict[str, Any]] = {}
    for cost in (cost for profile in profiles for cost in profile["costs"]):
        costs.setdefault(cost["length"], {}).update(cost)
    return {length: costs[length] for length in results.lengths if "dense_ms" in costs.get(length, {})}


def _timed(results: Results, length: int) -> list[str]:
    return [rule for rule in results.rules if rule != "full" and results.lines(rule, length)]


def _parts(results: Results, rule: str, cost: Mapping[str, Any]) -> tuple[float | None, float, float]:
    """Milliseconds of selection (None: not timed), of attention, and of both."""
    plan = results.result["plan"]
    blocks = blocks_text((plan["block_q"], plan["block_k"]))
    families = {family.method: family for family in FAMILIES}
    density, floor = results.means(rule, cost["length"])["density"], cost.get("floor_ms", {}).get(blocks, 0.0)
    attention = attention_ms(density, cost["block_ms"][blocks], floor)
    base, forced, _ = rule.partition("+")
    family = families.get(base.partition(":")[0])
    if family is not None:
        settings = results.result["settings"][rule]
        timed_as = family.timed_as(settings["rule"] if forced else settings, blocks)
        selection = cost["selection_ms"].get(timed_as)
    else:
        selection = cost.get("rule_ms", {}).get(base)
    return selection, attention, attention + (selection or 0.0)


def _rows(results: Results, cost: Mapping[str, Any]) -> Iterator[list[str]]:
    length = cost["length"]
    for rule in _timed(results, length):
        means = results.means(rule, length)
        places = (results.kept(rule, length, results.solved(length, place), place) for place in PLACES)
        kept = [share for share in places if not math.isnan(share)]
        selection, attention, total = _parts(results, rule, cost)
        bound, faster = ("", "") if selection is not None else (">= ", "<= ")
        yield [
            length_text(length),
            rule,
            f"{means['density']:.3f}",
            f"{min(kept, default=math.nan):.3f}",
            f"{means['nll']:+.4f}",
            "-" if selection is None else f"{selection:.2f}",
            f"{attention:.2f}",
            f"{bound}{total:.2f}",
            f"{faster}{cost['dense_ms'] / total:.2f}",
        ]
