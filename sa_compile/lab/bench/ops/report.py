"""``ops.md`` and plots from results of ``bench ops``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from sa_compile.lab.bench.ops.plots import draw

Row = dict[str, Any]


def write(results: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``ops.md`` and the plots; returns what was written."""
    tags = ["", *(f"{number}_" for number in range(2, len(results) + 1))]
    plots = [path for tag, result in zip(tags, results, strict=True) for path in draw(result, folder, tag)]
    report = folder / "ops.md"
    sections = [section(result) for result in results]
    pictures = "".join(f"![{path.stem}]({path.name})\n\n" for path in plots)
    report.write_text("\n".join(["# bench ops\n", *sections]) + "\n" + pictures.rstrip("\n") + "\n")
    return [report, *plots]


def section(result: Row) -> str:
    """One result as Markdown: where it comes from, its goals, its times, what failed or was left out."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    measured = [case for case in result["cases"] if "error" not in case]
    parts = [
        f"{result['device']}; {versions}; commit {result['revision']}; kernels in order of preference: "
        f"{', '.join(result['kernels'])}.\n\n    {result['command']}\n",
        _table(goal_rows(measured), ("case", "kept", "ratio of", "found", "wanted", "")),
        _table(time_rows(measured), ("case", "kept", "run", "ms", "max / min", "TFLOP/s", "workspace")),
    ]
    failures = [f"{case['name']}: {case['error']}" for case in result["cases"] if "error" in case]
    failures += [
        f"{case['name']}, {name}: {text}" for case in measured for name, text in case["errors"].items()
    ]
    if failures:
        parts.append("Failed:\n\n" + "".join(f"* {failure}\n" for failure in failures))
    if result["skipped"]:
        parts.append(f"Not measured, for time: {', '.join(result['skipped'])}.\n")
    return "\n".join(parts)


def goal_rows(cases: list[Row]) -> list[tuple[str, ...]]:
    """A row for each goal: what it compares, the ratio found and wanted, and "missed" where it is."""
    rows: list[tuple[str, ...]] = []
    for case in cases:
        for goal in case["goals"]:
            unit = "" if goal["quantity"] == "milliseconds" else " (TFLOP/s)"
            found = "failed" if goal["ratio"] is None else f"{goal['ratio']:.3f}"
            wanted = f"{'>=' if goal['at_least'] else '<='} {goal['bound']:g}"
            verdict = {True: "", False: "missed", None: "not known"}[goal["reached"]]
            ratio = f"{goal['over']} / {goal['under']}{unit}"
            rows.append((case["name"], f"{case['kept']:.3f}", ratio, found, wanted, verdict))
    return rows


def time_rows(cases: list[Row]) -> list[tuple[str, ...]]:
    """A row for each run of each case."""
    rows: list[tuple[str, ...]] = []
    for case in cases:
        for number, (name, time) in enumerate(case["milliseconds"].items()):
            rate = case["tflops"].get(name)
            memory = case.get("workspace_mib") if number == 0 else None
            rows.append(
                (
                    case["name"] if number == 0 else "",
                    f"{case['kept']:.3f}" if number == 0 else "",
                    name,
                    f"{time:.4g}",
                    f"{case['spread'][name]:.2f}",
                    "" if rate is None else f"{rate:.0f}",
                    "" if memory is None else f"{memory:.0f} MiB",
                )
            )
    return rows


def _table(rows: list[tuple[str, ...]], headers: tuple[str, ...]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"
