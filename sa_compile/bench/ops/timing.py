"""Times of functions that take turns, and the memory that one needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Function = Callable[[], Any]


def milliseconds(run: Function, repeats: int) -> list[float]:
    """Times of ``run`` on the GPU, replayed from a CUDA graph after one replay that is not timed.

    A graph, so that the time of short kernels is theirs and not that of the host, which launches them ahead
    of time where a model's queue is full.
    """
    run()  # what is compiled at the first call cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
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
