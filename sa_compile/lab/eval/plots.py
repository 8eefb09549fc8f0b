"""Plots of the harness's results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sa_compile.kernels.shared.blocks import unpack_bits
from sa_compile.lab.eval import divergence
from sa_compile.lab.eval.statistics import paired_ratio
from sa_compile.lab.eval.tasks.documents import PLACES
from sa_compile.lab.tokens import length_text

if TYPE_CHECKING:
    from sa_compile.lab.eval.report import Results

_NEEDLES = ("needle", "multikey", "kv")
_DEPTHS = 10


def draw_all(results: Results, folder: Path, times: divergence.Times | None = None) -> list[Path]:
    """Draw every plot that the results hold data for; returns the PNG files. ``times``: what rules cost."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = [*_accuracy_against_density(results, folder), *_needle_grids(results, folder)]
    curves = [divergence.draw_curves([("", results, None)], folder / "kl_density.png")]
    if times:
        curves.append(divergence.draw_curves([("", results, times)], folder / "kl_time.png", of_times=True))
    drawn += [path for path in curves if path is not None]
    drawn += [*_sparsity_maps(results, folder), *_head_maps(results, folder)]
    return [*drawn, *_pictures(results, folder)]


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, without what would differ from run to run, and close it."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    return path


def _accuracy_against_density(results: Results, folder: Path) -> list[Path]:
    """Per place, one panel a length: relative accuracy over density, a colour for each kind of rule."""
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(rule.split(":")[0].split("+")[0] for rule in results.rules))
    colour = {kind: f"C{n % 10}" for n, kind in enumerate(kinds)}
    paths = []
    for place in PLACES:
        figure, axes = pyplot.subplots(
            1,
            len(results.lengths),
            figsize=(4 * len(results.lengths), 4),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, length in zip(axes[0], results.lengths, strict=True):
            tasks = results.solved(length, place)
            for rule in results.rules:
                _, right, full = results.counts(rule, length, tasks, place)
                ratio, low, high = paired_ratio(right, full)
                if math.isnan(ratio):
                    continue
                kind = rule.split(":")[0].split("+")[0]
                density = results.means(rule, length)["density"]
                spread = [[ratio - low], [max(high - ratio, 0)]]
                marker = "s" if "+" in rule else "o"
                axis.errorbar(density, ratio, spread, fmt=marker, color=colour[kind], label=kind, ms=4)
            axis.axhline(0.99, color="grey", lw=0.7, ls=":")
            axis.set(title=length_text(length), xlabel="kept share of causal blocks", xlim=(0, 1.02))
        axes[0][0].set_ylabel(f"accuracy / full attention, questions: {place}")
        handles = {label: h for a in axes[0] for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
        if handles:
            axes[0][-1].legend(handles.values(), handles.keys(), fontsize=7, loc="lower right")
            paths.append(save(figure, folder / f"accuracy_{place}.png"))
        pyplot.close(figure)
    return paths


def _needle_grids(results: Results, folder: Path) -> list[Path]:
    """Per rule, retrieval accuracy by depth of the fact and length of the document."""
    from matplotlib import pyplot

    shown = [rule for rule in results.rules if any(results.lines(rule, n) for n in results.lengths)]
    if not shown:
        return []
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns, 2.8 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, rule in zip(axes.flat, shown, strict=False):
        grid = needle_grid(results, rule)
        axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto", origin="lower")
        axis.set_xticks(range(len(results.lengths)), [length_text(n) for n in results.lengths])
        axis.set_yticks([0, _DEPTHS - 1], ["start", "end"])
        axis.set_title(rule, fontsize=7)
    figure.supylabel("depth of the fact")
    return [save(figure, folder / "needle_grid.png")]


def needle_grid(results: Results, rule: str) -> np.ndarray:
    """Share right of the needle tasks' questions, [depth, length]; NaN where none was asked."""
    grid = np.full((_DEPTHS, len(results.lengths)), np.nan)
    for column, length in enumerate(results.lengths):
        marks: list[list[bool]] = [[] for _ in range(_DEPTHS)]
        for own, _ in results.lines(rule, length):
            asked = results.questions[f"{length}/{own['index']}"]
            for (task, _, depth), mark in zip(asked, own["right"], strict=True):
                if task in _NEEDLES:
                    marks[min(int(depth * _DEPTHS), _DEPTHS - 1)].append(mark == "1")
        grid[:, column] = [np.mean(part) if part else np.nan for part in marks]
    return grid


def _head_maps(results: Results, folder: Path) -> list[Path]:
    """Per rule, the dropped share of causal blocks of every layer and head by the rule."""
    from matplotlib import pyplot

    paths = []
    for length in results.lengths:
        maps = {rule: results.heads(rule, length, "density") for rule in results.rules if rule != "full"}
        maps = {rule: 1 - grid for rule, grid in maps.items() if grid.size}
        if not maps:
            continue
        columns = min(4, len(maps))
        rows = -(-len(maps) // columns)
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(3.2 * columns, 2.8 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(maps) :]:
            axis.set_axis_off()
        for axis, (rule, grid) in zip(axes.flat, maps.items(), strict=False):
            image = axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            axis.set_title(rule, fontsize=7)
        figure.colorbar(image, ax=axes, label="dropped share of causal blocks")
        figure.supxlabel("head")
        figure.supylabel("layer")
        paths.append(save(figure, folder / f"heads_{length_text(length).lower()}.png"))
    return paths


def _sparsity_maps(results: Results, folder: Path) -> list[Path]:
    """SD(0.95) of every layer and head under full attention, a panel a length."""
    from matplotlib import pyplot

    maps = {n: results.exact("full", n, "sd").mean(0) for n in results.lengths if _has_sparsity(results, n)}
    if not maps:
        return []
    figure, axes = pyplot.subplots(
        1, len(maps), figsize=(3.4 * len(maps), 3), squeeze=False, layout="constrained"
    )
    for axis, (length, grid) in zip(axes.flat, maps.items(), strict=True):
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_title(f"{length_text(length)}, mean {grid.mean():.3f}", fontsize=8)
    figure.colorbar(image, ax=axes, label="SD(0.95): droppable share of entries")
    figure.supxlabel("head")
    figure.supylabel("layer")
    return [save(figure, folder / "sparsity.png")]


def _has_sparsity(results: Results, length: int) -> bool:
    return results.exact("full", length, "sd").size > 0


def _pictures(results: Results, folder: Path) -> list[Path]:
    """Kept blocks of the chosen heads: a row of panels a head, a column a rule."""
    from matplotlib import pyplot

    entries = results.result.get("pictures") or []
    if not entries:
        return []
    heads = list(dict.fromkeys((entry["layer"], entry["head"]) for entry in entries))
    rules = list(dict.fromkeys(entry["rule"] for entry in entries))
    figure, axes = pyplot.subplots(
        len(heads),
        len(rules),
        figsize=(2.2 * len(rules), 2.4 * len(heads)),
        squeeze=False,
        layout="constrained",
    )
    for entry in entries:
        row, column = heads.index((entry["layer"], entry["head"])), rules.index(entry["rule"])
        n_key_blocks = -(-entry["length"] // results.result["plan"]["block_k"])
        kept = unpack_bits(torch.tensor(entry["words"], dtype=torch.int32), n_key_blocks)
        axis = axes[row][column]
        axis.imshow(kept.numpy(), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        if row == 0:
            axis.set_title(entry["rule"], fontsize=6)
        if column == 0:
            axis.set_ylabel(f"layer {entry['layer']}, head {entry['head']}", fontsize=7)
    return [save(figure, folder / "blocks.png")]
