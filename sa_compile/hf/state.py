"""What is known of each attention module: its options, its name, what became of it, its stats."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sa_compile.config import SampleAttentionConfig, options_without_compiler
from sa_compile.gathered_stats import Gathered, SiteStats, register
from sa_compile.passes.site_record import SiteRecord
from sa_compile.report import GraphReport, Report
from sa_compile.tensor_parallel import notes_on

ATTRIBUTE = "sampleattn"  # where a transformers config holds the options, as a plain dict


@dataclass
class Site:
    """One attention module. ``records``: a row for each way in which it ran, with the lengths seen."""

    path: str
    raw: Mapping[str, Any] | None = None
    config: SampleAttentionConfig = field(default_factory=SampleAttentionConfig)
    records: dict[tuple[Any, ...], SiteRecord] = field(default_factory=dict)
    gathered: Gathered | None = None

    def note(self, record: SiteRecord) -> None:
        """Add a call to the records: calls that differ in nothing but their lengths share a row."""
        record = replace(record, module_path=self.path)
        key = (record.outcome, record.form, record.reason, record.mask, record.q_len == 1)
        before = self.records.get(key)
        if before is not None:
            lengths: dict[str, Any] = {
                name: _span(getattr(before, name), getattr(record, name)) for name in _LENGTHS
            }
            record = replace(record, **lengths)
        self.records[key] = record

    def add_stats(self, record: SiteRecord, stats: Tensor) -> None:
        """Add what one call measured, fp32 [Hq, 3]."""
        with _lock:
            if self.gathered is None:
                self.gathered = Gathered([replace(record, module_path=self.path, has_stats=True)])
                register(self.gathered)
        self.gathered.add([stats])


_LENGTHS = ("batch", "q_len", "kv_len")
_sites: WeakKeyDictionary[nn.Module, Site] = WeakKeyDictionary()
_lock = threading.Lock()


def _span(before: int | str, now: int | str) -> int | str:
    """The range of lengths seen: 64, or "64-512"."""
    values = [int(part) for value in (before, now) for part in str(value).split("-")]
    low, high = min(values), max(values)
    return low if low == high else f"{low}-{high}"


def check_options(options: Mapping[str, Any] | None) -> SampleAttentionConfig:
    """The config of an options dict; an option that only a compiler could follow is a ``ValueError``."""
    return options_without_compiler(options, "attn_implementation='sampleattn'")


def site_of(module: nn.Module) -> Site:
    """The state of an attention module, with the options that its ``module.config`` holds now."""
    site = _sites.get(module)
    if site is None:
        with _lock:
            site = _sites.setdefault(module, Site(_fallback_name(module)))
    raw = getattr(getattr(module, "config", None), ATTRIBUTE, None)
    if raw != site.raw:
        config = raw if isinstance(raw, SampleAttentionConfig) else check_options(raw)
        site.raw, site.config = raw, config
    return site


def _fallback_name(module: nn.Module) -> str:
    layer = getattr(module, "layer_idx", None)
    return type(module).__name__ if layer is None else f"{type(module).__name__}[{layer}]"


def name_modules(model: nn.Module) -> None:
    """Let the reports and stats of a model's attention modules say where they are in it."""
    for path, module in model.named_modules():
        site = _sites.get(module)
        if site is not None:
            site.path = path
        elif hasattr(module, "config") and path:
            _sites[module] = Site(path)


class _Joined(Gathered):
    """The stats of several modules, to be read together."""

    def __init__(self, parts: list[Gathered]) -> None:
        super().__init__(())
        self.parts = parts

    def read(self) -> list[SiteStats]:
        return [site for part in self.parts for site in part.read()]


def report_of(model: nn.Module | None) -> Report:
    """A row for each way in which each attention ran so far; equal rows of different layers side by side."""
    if model is not None:
        name_modules(model)
    modules = list(_sites) if model is None else [m for m in model.modules() if m in _sites]
    groups: dict[str, list[Site]] = {}
    for site in (_sites[module] for module in modules):
        if site.records:
            groups.setdefault(repr(site.config), []).append(site)
    return Report(tuple(_group_report(sites) for sites in groups.values()), notes_on(model))


def _group_report(sites: list[Site]) -> GraphReport:
    kinds = dict.fromkeys(kind for site in sites for kind in site.records)
    rows = [
        replace(site.records[kind], module_path=site.path)
        for kind in kinds
        for site in sites
        if kind in site.records
    ]
    gathered = _Joined([site.gathered for site in sites if site.gathered is not None])
    return GraphReport(None, tuple(rows), sites[0].config, gathered)


def forget(model: nn.Module) -> None:
    """Drop the rows of a model's report; its options and stats stay."""
    for module in model.modules():
        if module in _sites:
            _sites[module].records.clear()
