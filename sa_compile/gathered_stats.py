"""``options={"stats": True}``: density and measured CRA per layer and head, gathered while the model runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import Tensor

from sa_compile.passes.rewrite.outputs import without_outputs
from sa_compile.passes.site_record import SiteRecord


@dataclass(frozen=True)
class SiteStats:
    """One attention over all its calls; the lists have an entry a query head."""

    module_path: str
    calls: int
    density: list[float]  # kept blocks / blocks that the mask allows, mean over calls
    cra_min: list[float]  # smallest kept share of attention of any sampled row in any call
    cra_mean: list[float]  # mean over calls (and batch) of the smallest share in a call


@dataclass(frozen=True)
class Stats:
    """What :func:`stats` returns; prints as a table of one row an attention."""

    sites: tuple[SiteStats, ...]

    @property
    def density(self) -> float:
        """Mean density over attentions and heads; NaN if nothing was sampled."""
        return _mean(value for site in self.sites for value in site.density)

    @property
    def cra_min(self) -> float:
        """Smallest CRA of any attention and head; NaN if nothing was sampled."""
        return min((value for site in self.sites for value in site.cra_min), default=float("nan"))

    @property
    def cra_mean(self) -> float:
        """Mean CRA over attentions and heads; NaN if nothing was sampled."""
        return _mean(value for site in self.sites for value in site.cra_mean)

    def density_of_ranks(self, group: dist.ProcessGroup | None = None) -> list[float]:
        """:attr:`density` of every rank of a process group (None: of all ranks); all of them must call this.

        ValueError without torch.distributed.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "stats of ranks need a process group, got none: torch.distributed is not initialized"
            )
        densities = [0.0] * dist.get_world_size(group)
        dist.all_gather_object(densities, self.density, group)
        return densities

    def imbalance(self, group: dist.ProcessGroup | None = None) -> float:
        """How much more the rank that keeps most keeps than their mean: its density / the mean of all.

        Ranks that share a model's heads wait for each other at every layer. As in :meth:`density_of_ranks`.
        """
        densities = self.density_of_ranks(group)
        return max(densities) / _mean(densities)

    def to_dict(self) -> dict[str, Any]:
        """The stats as plain data."""
        return {"sites": [vars(site) for site in self.sites]}

    def to_json(self) -> str:
        """The stats as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        if not self.sites:
            return "No sampled attention has run with options={'stats': True}."
        rows = [
            (site.module_path, site.calls, _range(site.density), min(site.cra_min), _mean(site.cra_mean))
            for site in self.sites
        ]
        headers = ("module", "calls", "density (heads)", "CRA min", "CRA mean")
        return tabulate(rows, headers, floatfmt=".3f")


class Gathered:
    """Accumulates the stats of one compiled graph on its device, without waiting for it."""

    def __init__(self, records: Iterable[SiteRecord]) -> None:
        self.paths = [record.module_path for record in records if record.has_stats]
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget every call so far."""
        self.calls = 0
        self._density: list[Tensor] = []
        self._cra_min: list[Tensor] = []
        self._cra_mean: list[Tensor] = []

    def wrap(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled graph, whose stats outputs come here instead of to its caller."""
        if not self.paths:
            return compiled
        return without_outputs(compiled, len(self.paths), self.add)

    def add(self, outputs: Sequence[Tensor]) -> None:
        """One call: a tensor [Hq, 3] of density, smallest and mean CRA for each site."""
        # Sums and minima make new tensors: under CUDA graphs the outputs themselves are overwritten.
        density, cra_min, cra_mean = zip(
            *(output.detach().double().unbind(1) for output in outputs), strict=True
        )
        with self._lock:  # several threads may call one compiled model
            if self.calls == 0:
                self._density, self._cra_min, self._cra_mean = list(density), list(cra_min), list(cra_mean)
            else:
                self._density = [old + new for old, new in zip(self._density, density, strict=True)]
                self._cra_min = [torch.minimum(*pair) for pair in zip(self._cra_min, cra_min, strict=True)]
                self._cra_mean = [old + new for old, new in zip(self._cra_mean, cra_mean, strict=True)]
            self.calls += 1

    def read(self) -> list[SiteStats]:
        """The stats so far, one entry a site; empty before the first call."""
        if not self.calls:
            return []
        columns = zip(self.paths, self._density, self._cra_min, self._cra_mean, strict=True)
        return [
            SiteStats(
                path,
                self.calls,
                (density / self.calls).tolist(),
                cra_min.tolist(),
                (cra_mean / self.calls).tolist(),
            )
            for path, density, cra_min, cra_mean in columns
        ]


_gathered: list[Gathered] = []


def register(gathered: Gathered) -> None:
    """Make a compiled graph's stats part of what :func:`stats` returns."""
    if gathered.paths:
        _gathered.append(gathered)


def stats() -> Stats:
    """Density and measured CRA of every attention that ran with ``options={"stats": True}`` in this process.

    Waits for the device. One entry a site of each compiled graph, in the order of compilation.
    """
    return Stats(tuple(site for gathered in _gathered for site in gathered.read()))


def reset_stats() -> None:
    """Forget the stats gathered so far; models keep gathering."""
    for gathered in _gathered:
        gathered.reset()


def _mean(values: Iterable[float]) -> float:
    collected = list(values)
    return sum(collected) / len(collected) if collected else float("nan")


def _range(values: Sequence[float]) -> str:
    return f"{_mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
