"""Which passes ran over a graph, how often and how long: what a trace shows of them."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch._logging import trace_structured


@dataclass
class PassRuns:
    """The runs of one pass; of what it called, other passes left out."""

    calls: int = 0
    ms: float = 0.0


class PassLog:
    """The passes over a graph and its children by their names, in the order in which they first ran."""

    def __init__(self) -> None:
        self.passes: dict[str, PassRuns] = {}
        self._within = [0.0]  # milliseconds of the passes inside each one that runs now

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Note one run of the pass ``name``."""
        runs, began = self.passes.setdefault(name, PassRuns()), time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            spent = 1000 * (time.perf_counter() - began)
            runs.calls += 1
            runs.ms += spent - self._within.pop()
            self._within[-1] += spent

    def to_json(self) -> str:
        """``{"prove": {"calls": 32, "ms": 12.5}, ...}``."""
        return json.dumps({name: asdict(runs) for name, runs in self.passes.items()}, indent=2)

    def emit(self) -> None:
        """Write the log into torch's structured trace (``TORCH_TRACE``, read by tlparse)."""
        trace_structured(
            "artifact",
            metadata_fn=lambda: {"name": "sampleattn_passes", "encoding": "json"},
            payload_fn=self.to_json,
        )


class Logged(Protocol):
    """What a pass works on."""

    log: PassLog


def a_pass(run: Callable[..., None]) -> Callable[..., None]:
    """A pass: a function of work on a graph, which the work's log notes by its name."""

    @functools.wraps(run)
    def noted(work: Logged, *others: Any) -> None:
        with work.log.running(run.__name__):
            run(work, *others)

    return noted
