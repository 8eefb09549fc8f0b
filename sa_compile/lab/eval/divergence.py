"""How far a rule's predictions are from full attention's, by kind of text, and what it costs to be near.

KL is the mean over text positions of KL(full attention's distribution of the next token || the rule's), nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

from sa_compile.lab.eval.plan import FACTS
from sa_compile.lab.eval.statistics import mean_interval
from sa_compile.lab.tokens import length_text

if TYPE_CHECKING:
    from sa_compile.lab.eval.report import Results

BOUND = 0.01  # nats: the KL at which rules are compared
NOTE = (
    "Mean over text positions of KL(full attention's distribution of the next token || the rule's), nats, ± "
    "the half-width of its 95 % interval over documents; behind it the share of positions whose most likely "
    "token is full attention's. facts: the text between hidden facts."
)
Times = Mapping[tuple[int, str], float]  # milliseconds of a forward pass's attentions, by length and rule


@dataclass(frozen=True)
class Prediction:
    """What the documents of a kind say of a rule at a length; ``half`` NaN for a single document."""

    kl: float
    half: float
    same: float
    density: float
    documents: int


def prediction(results: Results, rule: str, length: int, kind: str) -> Prediction | None:
    """None where no document of the kind was scored, or by a version that measured no KL."""
    lines = [own for own, _ in results.lines(rule, length, kind) if own.get("kl") is not None]
    if not lines:
        return None
    mean, half = mean_interval(np.array([line["kl"] for line in lines]))
    same, density = (float(np.mean([line[what] for line in lines])) for what in ("agree", "density"))
    return Prediction(mean, half, same, density, len(lines))


def kinds(results: Results) -> list[str]:
    """Kinds of text with a KL, that between the facts first."""
    return [
        kind
        for kind in (FACTS, *results.result["plan"]["domains"])
        if any(prediction(results, "full", length, kind) for length in results.lengths)
    ]


def divergence_table(results: Results) -> str:
    """Density, KL and equal tokens of every rule, a column a kind of text; empty without any KL."""
    shown, rows = kinds(results), []
    for length in results.lengths:
        for rule in results.rules[1:]:
            found = [prediction(results, rule, length, kind) for kind in shown]
            if any(found):
                rows.append([length_text(length), rule, *map(_cell, found)])
    headers = ["length", "rule", *(f"{kind}: kept, KL, same" for kind in shown)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) if rows else ""


def _cell(found: Prediction | None) -> str:
    if found is None:
        return "-"
    half = "" if math.isnan(found.half) else f" ± {found.half:.4f}"
    return f"{found.density:.3f}, {found.kl:.4f}{half}, {found.same:.4f}"


def family(rule: str) -> str:
    """The rule's kind with what is forced, without its settings: what is joined to a curve."""
    base, plus, forced = rule.partition("+")
    return base.partition(":")[0] + plus + forced


def curves(
    results: Results, length: int, kind: str, times: Times | None = None
) -> dict[str, list[tuple[float, float]]]:
    """By family, (kept share, KL) of its rules, or (milliseconds, KL) where ``times`` has them, by cost."""
    found: dict[str, list[tuple[float, float]]] = {}
    for rule in results.rules[1:]:
        point = prediction(results, rule, length, kind)
        cost = None if point is None else point.density if times is None else times.get((length, rule))
        if point is not None and cost is not None:
            found.setdefault(family(rule), []).append((cost, point.kl))
    return {name: sorted(points) for name, points in found.items()}


def cost_at(points: Iterable[tuple[float, float]], bound: float = BOUND) -> tuple[str, float]:
    """The least cost of (cost, KL) points at a KL, log KL interpolated between the best of them.

    ("", cost), or ("<=", the least cost) where every point is within the bound, or (">", the greatest) where
    none is. ValueError without points.
    """
    best: list[tuple[float, float]] = []
    for cost, kl in sorted(points):
        if not best or kl < best[-1][1]:
            best.append((cost, kl))
    if not best:
        raise ValueError("'points' is empty")
    if best[0][1] <= bound:
        return "<=", best[0][0]
    for (cost, kl), (next_cost, next_kl) in zip(best, best[1:], strict=False):
        if next_kl <= bound:
            log, next_log, wanted = (math.log(max(x, 1e-9)) for x in (kl, next_kl, bound))
            return "", cost + (next_cost - cost) * (log - wanted) / (log - next_log)
    return ">", best[-1][0]


def cost_table(results: Results, times: Times | None = None, bound: float = BOUND) -> str:
    """What each family costs at a KL: kept share, or milliseconds with ``times``; a column a kind of text."""
    shown, rows = kinds(results), []
    for length in results.lengths:
        by_kind = {kind: curves(results, length, kind, times) for kind in shown}
        for name in dict.fromkeys(name for families in by_kind.values() for name in families):
            cells = []
            for families in by_kind.values():
                sign, cost = cost_at(families[name], bound) if name in families else ("", math.nan)
                cells.append("-" if math.isnan(cost) else f"{sign} {cost:.3f}".strip())
            rows.append([length_text(length), name, *cells])
    return (
        tabulate(rows, ["length", "rules", *shown], tablefmt="github", disable_numparse=True) if rows else ""
    )


def draw_curves(
    panels: Sequence[tuple[str, Results, Times | None]], path: Path, *, of_times: bool = False
) -> Path | None:
    """KL against kept share, or against time: a row for each name (a model, or nothing) and kind of text, a
    column a length. None, and no file, without a point to draw."""
    from matplotlib import pyplot

    from sa_compile.lab.eval.plots import save

    rows = [(name, results, times, kind) for name, results, times in panels for kind in kinds(results)]
    lengths = sorted({length for _, results, _, _ in rows for length in results.lengths})
    drawn = [
        [curves(results, n, kind, (times or {}) if of_times else None) for n in lengths]
        for _, results, times, kind in rows
    ]
    names = list(dict.fromkeys(name for row in drawn for families in row for name in families))
    if not names:
        return None
    figure, axes = pyplot.subplots(
        len(rows),
        len(lengths),
        figsize=(3.8 * len(lengths), 3.0 * len(rows)),
        sharex=False if of_times else "all",
        squeeze=False,
        layout="constrained",
    )
    for (name, _, _, kind), row, families_of_row in zip(rows, axes, drawn, strict=True):
        for axis, length, families in zip(row, lengths, families_of_row, strict=True):
            _draw_families(axis, families, names)
            axis.set_title(f"{name + ', ' if name else ''}{length_text(length)}, {kind}", fontsize=8)
    figure.supxlabel("milliseconds of attention and selection" if of_times else "kept share of causal blocks")
    figure.supylabel("KL(full attention || rule), nats")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=7, loc="outside right upper")
    return save(figure, path)


def _draw_families(
    axis: Any, families: Mapping[str, list[tuple[float, float]]], names: Sequence[str]
) -> None:
    for name, points in families.items():
        cost, kl = zip(*points, strict=True)
        number = names.index(name)
        marker = "s" if "+" in name else "o"
        axis.plot(cost, np.maximum(kl, 1e-5), f"{marker}-", color=f"C{number % 10}", label=name, ms=3, lw=0.8)
    if families:
        axis.axhline(BOUND, color="grey", lw=0.7, ls=":")
        axis.set_yscale("log")
    else:
        axis.set_axis_off()


def write_overview(models: Mapping[str, Results], folder: Path) -> list[Path]:
    """Write report.md on the KL of several models' rules, and a plot, into ``folder``; returns both."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# KL of rules on {', '.join(models)}", "", NOTE, ""]
    for name, results in models.items():
        lines += [f"## {name}", "", f"Kept share at KL {BOUND:g}; [the whole report]({name}/report.md).", ""]
        lines += [cost_table(results), "", divergence_table(results), ""]
    drawn = draw_curves(
        [(name, results, None) for name, results in models.items()], folder / "kl_density.png"
    )
    paths = [folder / "report.md", *([drawn] if drawn else [])]
    lines += [f"![{path.stem}]({path.name})" for path in paths[1:]]
    paths[0].write_text("\n".join([*lines, ""]))
    return paths
