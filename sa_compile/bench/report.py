"""``bench report``: pages of tables and charts from the JSON of any benchmark, never typed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from sa_compile.bench import breakdown, lengths, ttft_table
from sa_compile.bench.competitors import OURS
from sa_compile.bench.ops import report as ops_report
from sa_compile.bench.ops.run import BENCHMARK as OPS

Result = dict[str, Any]


def write(files: Sequence[Path], folder: Path) -> list[Path]:
    """A Markdown page with its pictures for each kind of benchmark among ``files``; returns what was written.

    ValueError for a file that is no result of 'bench ops', 'ttft', 'breakdown' or 'lengths'.
    """
    kinds: dict[str, list[Result]] = {kind: [] for kind in _PAGES}
    for file in files:
        result = json.loads(file.read_text())
        kind = result.get("benchmark")
        if kind not in kinds:
            raise ValueError(
                f'{file}: "benchmark" must be one of {", ".join(kinds)} for a page, got {kind!r}'
            )
        kinds[kind].append(result)
    folder.mkdir(parents=True, exist_ok=True)
    return [path for kind, results in kinds.items() if results for path in _PAGES[kind](results, folder)]


def headline(results: Sequence[Result]) -> str:
    """Markdown: TTFT of one model over all lengths of several results of 'bench ttft', in seconds.

    Columns: tokens, kept share, how many layers were measured, the baselines, sampleattn, times faster.
    """
    rows = sorted((row for result in results for row in result["rows"]), key=lambda row: row["length"])
    names = [name for name in ttft_table.TITLES if any(row["competitor"] == name for row in rows)]
    baselines = [name for name in names if name != OURS]
    lines = []
    for length in dict.fromkeys(row["length"] for row in rows):
        found = {row["competitor"]: row for row in rows if row["length"] == length}
        mine = found[OURS]
        line = [
            ttft_table.length_text(length, 1),
            "-" if mine["density"] is None else f"{mine['density']:.0%}",
        ]
        line += [f"{mine['layers']} of {mine['all_layers']}"]
        line += [_seconds(found.get(name)) for name in [*baselines, OURS]]
        line += [_factor(found.get(name), mine) for name in baselines]
        lines.append(line)
    headers = ["tokens", "kept", "layers measured"]
    headers += [f"{ttft_table.TITLES[name]} (s)" for name in [*baselines, OURS]]
    headers += [f"times faster than {ttft_table.TITLES[name]}" for name in baselines]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def _seconds(row: Result | None) -> str:
    return "-" if row is None or row["error"] else f"{row['ttft_ms'] / 1e3:.3g}"


def _factor(row: Result | None, ours: Result) -> str:
    return "-" if row is None or row["error"] else f"**{row['ttft_ms'] / ours['ttft_ms']:.1f}**"


def _ops_page(results: list[Result], folder: Path) -> list[Path]:
    return ops_report.write(results, folder)


def _ttft_page(results: list[Result], folder: Path) -> list[Path]:
    page, picture = folder / "ttft.md", folder / "ttft.png"
    results = sorted(results, key=lambda result: (result["model"], result["lengths"]))
    sections = [
        f"{ttft_table.table(result)}\n\n    {result['command']}\n\nCommit {result['revision']}."
        for result in results
    ]
    title = "# bench ttft\n\nMilliseconds of a prefill with a new KV cache and the last token's logits."
    page.write_text("\n\n".join([title, *sections, f"![times to first token]({picture.name})"]) + "\n")
    return [page, ttft_table.chart(results, picture)]


def _breakdown_page(results: list[Result], folder: Path) -> list[Path]:
    page = folder / "breakdown.md"
    pictures = [
        breakdown.chart(result, folder / f"breakdown_{number}.png")
        for number, result in enumerate(results, start=1)
    ]
    sections = [
        f"{breakdown.table(result)}\n\n    {result['command']}\n\nCommit {result['revision']}.\n\n"
        f"![milliseconds of each layer]({picture.name})"
        for result, picture in zip(results, pictures, strict=True)
    ]
    page.write_text("\n\n".join(["# bench breakdown", *sections]) + "\n")
    return [page, *pictures]


def _lengths_page(results: list[Result], folder: Path) -> list[Path]:
    page = folder / "lengths.md"
    sections = [
        f"{lengths.table(result)}\n\n    {result['command']}\n\nCommit {result['revision']}."
        for result in results
    ]
    page.write_text("\n\n".join(["# bench lengths", *sections]) + "\n")
    return [page]


_PAGES: dict[str, Callable[[list[Result], Path], list[Path]]] = {
    OPS: _ops_page,
    "ttft": _ttft_page,
    "breakdown": _breakdown_page,
    "lengths": _lengths_page,
}
