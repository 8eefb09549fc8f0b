"""Times of functions that take turns, and the memory that one needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Function = Callable[[], Any]

_LONG_ENOUGH_MS = 1.0  # of a graph: its own start, some microseconds, is then less than a hundredth
_MOST_CALLS = 32


def milliseconds(run: Function, repeats: int) -> list[float]:
    """Times of a call of ``run`` on the GPU, replayed from a CUDA graph.

    A graph, so that the time of short kernels is theirs and not that of the host, which launches them ahead
    of time where a model's queue is full. Of short ones it holds several calls, for there the next kernel
    starts when the last one ends, and a graph of one call would have its own start counted as the kernel's.
    """
    run()  # what is compiled at the first call cannot be captured
    [once] = _replay_times(run, 1, 1)
    calls = min(max(round(_LONG_ENOUGH_MS / once), 1), _MOST_CALLS)
    return [time / calls for time in _replay_times(run, calls, repeats)]


def _replay_times(run: Function, calls: int, repeats: int) -> list[float]:
    """Milliseconds of a graph of ``calls`` calls, after one replay that is not timed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    graph.replay()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


def in_turn(
    functions: Mapping[str, Function],
    rounds: int,
    repeats: int,
    measure: Callable[[Function, int], list[float]] = milliseconds,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Times by name, and the error text of those that failed; the others are measured all the same.

    The functions take turns ``rounds`` times, for a GPU that computes steadily lowers its clocks: what is
    measured first would look better.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    errors: dict[str, str] = {}
    for _ in range(rounds):
        for name, function in functions.items():
            if name in errors:
                continue
            try:
                times[name] += measure(function, repeats)
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                del times[name]
    return times, errors


def workspace_bytes(run: Callable[[], tuple[Tensor, ...]]) -> int:
    """Device memory at the peak of one call, without what was allocated before and without its outputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = run()
    torch.cuda.synchronize()
    returned = sum(output.untyped_storage().nbytes() for output in outputs)
    return torch.cuda.max_memory_allocated() - before - returned
