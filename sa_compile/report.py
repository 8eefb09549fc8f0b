"""The report: what became of every attention, as a table and as data."""

from __future__ import annotations

import dataclasses
import json
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate
from torch import fx

from sa_compile.config import SampleAttentionConfig
from sa_compile.gathered_stats import Gathered, Stats
from sa_compile.masks_seen import MasksSeen
from sa_compile.passes.conditions.training import MODULE_TRAINS
from sa_compile.passes.site_record import SiteRecord

COLUMNS = (
    "graph",
    "module",
    "spelling",
    "heads",
    "dim",
    "q x kv",
    "mask",
    "outcome",
    "form",
    "kernel",
    "reason",
)


@dataclass(frozen=True)
class GraphReport:
    """One compiled graph: the rewritten module and a record for each attention in it.

    ``graph`` is None for attention that ran without being compiled (``sa_compile.hf``), a report each.
    """

    graph: fx.GraphModule | None
    records: tuple[SiteRecord, ...]
    config: SampleAttentionConfig
    gathered: Gathered
    profile_checked: str = ""  # what of the profile's model was compared with this graph
    last_graph: str = ""  # of a function that has as many graphs as Dynamo makes: what that means
    masks: MasksSeen = field(default_factory=MasksSeen)

    @property
    def sites(self) -> tuple[SiteRecord, ...]:
        """The records; where the graph reads a mask, with what that was when it last ran."""
        return tuple(map(self.masks.as_run, self.records))


@dataclass(frozen=True)
class Report:
    """What :func:`sa_compile.explain` returns; prints as a table of one row a site."""

    compiled: tuple[GraphReport, ...]
    notes: tuple[str, ...] = ()  # on the model as a whole

    @property
    def graphs(self) -> tuple[fx.GraphModule, ...]:
        """The graph modules as handed to the inner backend."""
        return tuple(report.graph for report in self.compiled if report.graph is not None)

    @property
    def sites(self) -> tuple[SiteRecord, ...]:
        """Every attention found, in graph order; ``.outcome`` is "sampled", "exact" or "kept"."""
        return tuple(site for report in self.compiled for site in report.sites)

    def stats(self) -> Stats:
        """Density and CRA that these graphs measured so far, with ``options={"stats": True}``."""
        return Stats(tuple(site for report in self.compiled for site in report.gathered.read()))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "options": self.compiled[0].config.to_dict() if self.compiled else {},
            "profile_checked": [report.profile_checked for report in self.compiled],
            "last_graph": [report.last_graph for report in self.compiled],
            "notes": list(self.notes),
            "sites": [
                {"graph": number, **dataclasses.asdict(site)}
                for number, report in enumerate(self.compiled)
                for site in report.sites
            ],
        }

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def __str__(self) -> str:
        if not self.compiled:
            return "Nothing to report: the model did not run, or torch.compile skipped it."
        if not self.sites:
            return f"No attention found in {len(self.compiled)} graph(s)."
        rows = [_row(number, site) for number, report in enumerate(self.compiled) for site in report.sites]
        counts = Counter(site.outcome for site in self.sites)
        summary = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("sampled", "exact", "kept"))
        table = tabulate(_merge_equal_rows(rows), COLUMNS, maxcolwidths=_WIDTHS)
        lines = [table, f"{len(rows)} sites: {summary}"]
        for number, report in enumerate(self.compiled):
            if report.profile_checked:
                path = report.config.profile
                lines.append(f"graph {number} fits the model of profile {path}: {report.profile_checked}")
            if report.last_graph:
                lines.append(f"graph {number} is {report.last_graph}")
        lines += self.notes
        return "\n".join(lines)


_WIDTHS = [None, 36, None, None, None, None, 24, None, 20, None, 40]


def _row(number: int, site: SiteRecord) -> tuple[str, ...]:
    heads = f"{site.q_heads}" if site.q_heads == site.kv_heads else f"{site.q_heads}/{site.kv_heads}"
    return (
        str(number),
        site.module_path,
        site.spelling,
        heads,
        str(site.head_dim),
        f"{site.q_len} x {site.kv_len}",
        site.mask,
        site.outcome,
        site.form,
        site.kernel,
        site.reason,
    )


def _merge_equal_rows(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Neighbouring layers that differ in nothing but their number share a row: 'layers.{0-31}.self_attn'."""
    merged: list[list[tuple[str, ...]]] = []
    for row in rows:
        if merged and row[2:] == merged[-1][0][2:] and row[0] == merged[-1][0][0]:
            merged[-1].append(row)
        else:
            merged.append([row])
    return [(group[0][0], _common_path([row[1] for row in group]), *group[0][2:]) for group in merged]


def _common_path(paths: list[str]) -> str:
    if len(paths) == 1:
        return paths[0]
    split = [path.split(".") for path in paths]
    differing = {
        position for position in range(min(map(len, split))) if len({parts[position] for parts in split}) > 1
    }
    if len({len(parts) for parts in split}) > 1 or len(differing) != 1:
        return f"{paths[0]} ... {paths[-1]} ({len(paths)})"
    (position,) = differing
    parts = list(split[0])
    parts[position] = f"{{{split[0][position]}-{split[-1][position]}}}"
    return ".".join(parts)


Collector = list[GraphReport]
_own: ContextVar[Collector | None] = ContextVar("sampleattn_reports", default=None)
_shared: list[Collector] = []
_lock = threading.Lock()


@contextmanager
def collect(*, other_threads: bool = True) -> Iterator[Collector]:
    """Gather the reports of every graph compiled inside the ``with`` block, in order.

    Threads that have no collector of their own (``generate_batch`` compiles in one) report to every collector
    that is open and takes ``other_threads``; inside a ``with`` block only the innermost one gathers.
    """
    reports: Collector = []
    token = _own.set(reports)
    with _lock:
        if other_threads:
            _shared.append(reports)
    try:
        yield reports
    finally:
        with _lock:
            _shared[:] = [other for other in _shared if other is not reports]
        _own.reset(token)


def publish(graph_report: GraphReport) -> None:
    """Hand a compiled graph's report to the collectors that are open for it."""
    own = _own.get()
    with _lock:
        for reports in _shared if own is None else [own]:
            reports.append(graph_report)


def warn_of_training_mode(records: Iterable[SiteRecord], min_seq_len: int) -> None:
    """Long prompts stay exact because nobody called ``model.eval()``: say so."""
    for record in records:
        long = not isinstance(record.q_len, int) or record.q_len >= min_seq_len
        if record.reason.endswith(MODULE_TRAINS) and long:
            warnings.warn(
                "attention is not sampled: its module is in training mode, though no gradients are recorded; "
                "call model.eval() for inference",
                stacklevel=2,
            )
            return
