"""Measures the cases and writes one JSON file, anew after every case."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from sa_compile.kernels import choice
from sa_compile.lab.bench.ops import timing
from sa_compile.lab.bench.ops.cases import Case, Goal
from sa_compile.provenance import provenance

BENCHMARK = "ops"


def run(cases: Iterable[Case], out: Path, minutes: float, revision: str | None = None) -> int:
    """Measure on the current CUDA device; the exit status is 1 if something failed to run.

    Cases that would begin after ``minutes`` are listed under "skipped". Raises ValueError without a CUDA
    device.
    """
    if not torch.cuda.is_available():
        raise ValueError("bench ops measures CUDA kernels: torch finds no CUDA device on this machine")
    begin = time.monotonic()
    result: dict[str, Any] = {
        "benchmark": BENCHMARK,
        **provenance("cuda", revision=revision),
        "kernels": list(choice.preference()),
        "cases": [],
        "skipped": [],
    }
    for case in cases:
        if time.monotonic() - begin > minutes * 60:
            result["skipped"].append(case.name)
        else:
            started = time.monotonic()
            result["cases"].append(measure(case, "cuda"))
            result["cases"][-1]["seconds"] = round(time.monotonic() - started, 1)
            print(one_line(result["cases"][-1]), flush=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    if result["skipped"]:
        print(f"skipped after {minutes:g} minutes: {', '.join(result['skipped'])}")
    return int(any("error" in case or case.get("errors") for case in result["cases"]))


def measure(
    case: Case, device: str, times: Callable[..., list[float]] = timing.milliseconds
) -> dict[str, Any]:
    """One case as plain data: sizes, medians, TFLOP/s, goals; "error" if it could not be set up."""
    shape = case.shape
    row: dict[str, Any] = {
        "name": case.name,
        "problem": case.problem.__name__,
        "length": shape.length,
        "heads": shape.heads,
        "heads_kv": shape.kv_heads,
        "head_dim": shape.head_dim,
        "head_dim_v": shape.value_head_dim,
        "dtype": str(shape.dtype).removeprefix("torch."),
    }
    try:
        row |= _measured(case, device, times)
    except Exception as error:  # out of memory, say: the next case may fit
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    torch.cuda.empty_cache()
    return row


def _measured(case: Case, device: str, times: Callable[..., list[float]]) -> dict[str, Any]:
    problem = case.problem(case.shape, case.density, case.against, device)
    row: dict[str, Any] = {"kept": problem.kept}
    if problem.workspace is not None and device == "cuda":
        function = problem.runs[problem.workspace].function
        function()
        row["workspace_mib"] = timing.workspace_bytes(function) / 2**20
    functions = {name: run.function for name, run in problem.runs.items()}
    found, errors = timing.in_turn(functions, case.rounds, case.repeats, times)
    medians = {name: statistics.median(values) for name, values in found.items()}
    row["milliseconds"] = medians
    row["spread"] = {name: max(values) / min(values) for name, values in found.items()}
    row["calls"] = case.rounds * case.repeats
    row["tflops"] = {
        name: flops / medians[name] / 1e9
        for name, run in problem.runs.items()
        if name in medians and (flops := run.flops) is not None
    }
    row["goals"] = [reached(goal, row) for goal in case.goals]
    row["errors"] = errors
    return row


def reached(goal: Goal, row: dict[str, Any]) -> dict[str, Any]:
    """The goal's ratio in a measured row; ``ratio`` and ``reached`` are None if a run of it failed."""
    values, ratio, met = row[goal.quantity], None, None
    if all(name in values for name in goal.over + goal.under):
        ratio = sum(values[name] for name in goal.over) / sum(values[name] for name in goal.under)
        met = ratio >= goal.bound if goal.at_least else ratio <= goal.bound
    return {
        "over": " + ".join(goal.over),
        "under": " + ".join(goal.under),
        "quantity": goal.quantity,
        "ratio": ratio,
        "bound": goal.bound,
        "at_least": goal.at_least,
        "reached": met,
    }


def one_line(row: dict[str, Any]) -> str:
    """A measured case as a line of text."""
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    parts = [f"{name} {time:.3f} ms" for name, time in row["milliseconds"].items()]
    parts += [f"{name}: {text}" for name, text in row["errors"].items()]
    parts += [
        f"{goal['over']} / {goal['under']} = {goal['ratio']:.3f} (bound {goal['bound']:g})"
        for goal in row["goals"]
        if goal["ratio"] is not None
    ]
    return f"{row['name']}, kept {row['kept']:.3f}: {', '.join(parts)}"
