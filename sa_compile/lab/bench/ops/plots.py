"""Plots of ``bench ops``: kept share against time, and length against time."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from sa_compile.lab.tokens import length_text

Row = dict[str, Any]
# run -> points (x, milliseconds)
Series = dict[str, list[tuple[float, float]]]


def draw(result: Row, folder: Path, tag: str = "") -> list[Path]:
    """Write the plots that the result has points for; returns their paths. Needs matplotlib."""
    cases = [case for case in result["cases"] if "error" not in case]
    paths = []
    panels = {length: by_density(cases, length) for length in sorted({case["length"] for case in cases})}
    panels = {
        f"{length_text(length)} tokens": series for length, series in panels.items() if _is_a_line(series)
    }
    if panels:
        labels = ("kept share of the causal blocks", "ms")
        paths.append(_plot(panels, labels, folder / f"{tag}density.png", result["device"]))
    panels = {"sampling, selection and attention": by_length(cases, "whole_attention")}
    panels["attention, a tenth of the blocks"] = by_length(cases, "random_lists")
    panels = {title: series for title, series in panels.items() if _is_a_line(series)}
    if panels:
        paths.append(_plot(panels, ("tokens", "ms"), folder / f"{tag}length.png", result["device"]))
    return paths


def by_density(cases: list[Row], length: int) -> Series:
    """Times of random block lists at one length; dense attention, which keeps everything, is left out."""
    series: Series = defaultdict(list)
    for case in cases:
        if case["problem"] == "random_lists" and case["length"] == length:
            for name, time in case["milliseconds"].items():
                if name in ("ours", "flex"):
                    series[name].append((case["kept"], time))
    return {name: sorted(points) for name, points in series.items()}


def by_length(cases: list[Row], problem: str) -> Series:
    """Times by length of one kind of problem, of cases that keep about a tenth."""
    series: Series = defaultdict(list)
    for case in cases:
        if case["problem"] == problem and 0.07 <= case["kept"] <= 0.17 and case["heads_kv"] == 8:
            for name, time in case["milliseconds"].items():
                series[name].append((case["length"], time))
    return {name: sorted(points) for name, points in series.items()}


def _is_a_line(series: Series) -> bool:
    return any(len(points) > 1 for points in series.values())


def _plot(panels: dict[str, Series], labels: tuple[str, str], path: Path, device: str) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.4), squeeze=False, layout="constrained"
    )
    for axis, (title, series) in zip(axes[0], panels.items(), strict=True):
        for name, points in series.items():
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
        axis.set_title(title, fontsize=9)
        axis.legend(fontsize=8)
    figure.suptitle(device, fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
