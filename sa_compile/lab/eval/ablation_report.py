"""Tables and plots of an ablation: a table and a picture an axis."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from sa_compile.lab.eval.naming import present_name
from sa_compile.lab.eval.plots import save
from sa_compile.lab.eval.report import SOLVED, THEOREM_NOTE, Results, provenance_lines, theorem_cells
from sa_compile.lab.eval.tasks.documents import PLACES

_HEADERS = ("tokens", "value", "density", "CRA", "text NLL", *PLACES, "same token")
_THEOREM_HEADERS = ("heads", "largest error", "its bound", "error / bound", "above")


class Ablation:
    """An ablation's result, with the harness's results of each block size behind it."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.axes: dict[str, dict[str, Any]] = result["axes"]
        self.results = {block: Results(own) for block, own in result["results"].items()}
        self.lengths = next(iter(self.results.values())).lengths

    def of(self, point: dict[str, Any]) -> Results:
        """The results that a point's rule is in."""
        return self.results[str(point["block"])]

    def default(self, axis: str) -> str:
        """The rule around which an axis varies a setting, named by its settings and the present defaults."""
        point = next(point for point in self.axes[axis]["points"] if point["is_default"])
        return present_name(point["rule"], self.of(point).result["settings"][point["rule"]])

    def accuracy(self, point: dict[str, Any], length: int, place: str) -> float:
        """Relative accuracy on the tasks that full attention solves; NaN if it solves none."""
        results = self.of(point)
        _, right, full = results.counts(point["rule"], length, results.solved(length, place), place)
        return right.sum() / full.sum() if full.sum() else math.nan


def axis_table(ablation: Ablation, axis: str) -> str:
    """One row a length and value; * marks the default. With error and bound where they were measured."""
    rows = []
    points = ablation.axes[axis]["points"]
    for length in ablation.lengths:
        for point in points:
            results = ablation.of(point)
            if not results.lines(point["rule"], length):
                continue
            means = results.means(point["rule"], length)
            numbers = [means["density"], means["cra"], means["nll"]]
            accuracies = [ablation.accuracy(point, length, place) for place in PLACES]
            rows.append(
                [
                    str(length),
                    point["value"] + ("*" if point["is_default"] else ""),
                    *("-" if math.isnan(x) else f"{x:.3f}" for x in numbers[:2]),
                    "-" if math.isnan(numbers[2]) else f"{numbers[2]:+.4f}",
                    *("-" if math.isnan(x) else f"{x:.3f}" for x in (*accuracies, means["agree"])),
                    *theorem_cells(results, point["rule"], length),
                ]
            )
    with_theorem = any(len(row) > len(_HEADERS) for row in rows)
    headers = (*_HEADERS, *_THEOREM_HEADERS) if with_theorem else _HEADERS
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def write_ablation(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write report.md and a plot an axis into ``folder``; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    ablation = Ablation(result)
    first = next(iter(result["results"].values()))
    text = ["# Ablations", "", *provenance_lines(first)]
    text += [
        "One setting varied at a time around its rule's default of then (*), named by its settings and the "
        "present defaults. Accuracy of questions by place, "
        f"relative to full attention, on tasks that it solves (at least {SOLVED:.0%}). {THEOREM_NOTE}",
        "",
    ]
    drawn = []
    for axis, described in ablation.axes.items():
        path = _draw(ablation, axis, folder)
        drawn.append(path)
        text += [f"## {axis}: {described['about']}", "", f"Around `{ablation.default(axis)}`.", ""]
        text += [axis_table(ablation, axis), ""]
        text += [f"![{path.stem}]({path.name})", ""]
    report = folder / "report.md"
    report.write_text("\n".join(text))
    return [report, *drawn]


def _draw(ablation: Ablation, axis: str, folder: Path) -> Path:
    """Accuracy by place (left scale) and density (right scale) over an axis's values, a panel a length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = ablation.axes[axis]["points"]
    positions = np.arange(len(points))
    count = len(ablation.lengths)
    figure, axes = pyplot.subplots(
        1, count, figsize=(4 * count, 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, length in zip(axes[0], ablation.lengths, strict=True):
        for number, place in enumerate(PLACES):
            values = [ablation.accuracy(point, length, place) for point in points]
            panel.plot(positions, values, marker="o", ms=4, color=f"C{number}", label=place)
        right = panel.twinx()
        density = [ablation.of(point).means(point["rule"], length)["density"] for point in points]
        right.bar(positions, density, width=0.5, color="grey", alpha=0.25)
        right.set_ylim(0, 1)
        panel.set(title=f"{length} tokens", xlabel=axis)
        panel.set_xticks(positions, [p["value"] + ("*" if p["is_default"] else "") for p in points])
    right.set_ylabel("kept share of blocks (bars)")
    axes[0][0].set_ylabel("accuracy / full attention")
    axes[0][0].legend(fontsize=7, loc="lower right")
    return save(figure, folder / f"ablation_{axis}.png")
