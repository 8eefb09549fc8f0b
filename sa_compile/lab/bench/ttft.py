"""Time to first token of whole models: ``python -m sa_compile bench ttft``.

One prefill with a new KV cache and the logits of the last token (``logits_to_keep=1``). Competitors run the
same model object and take turns, round by round, because a device that computes steadily lowers its clocks;
medians are compared, and only inside one run. Weights are random unless a folder gives them; random weights
say nothing about density, so it is set, and every row says how.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import re
import statistics
import textwrap
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sa_compile.chunked_mlp import chunk_mlps
from sa_compile.config import SampleAttentionConfig
from sa_compile.lab.bench import competitors, density
from sa_compile.lab.bench.competitors import OURS, Competitor
from sa_compile.lab.bench.op_hooks import density_set
from sa_compile.lab.bench.shape import Shape, load_shape
from sa_compile.lab.bench.ttft_table import table
from sa_compile.provenance import provenance

SPARSE = (OURS, "interface")


@dataclass(frozen=True)
class Row:
    """One competitor at one length: times of the layers that were built, or an ``error`` in words."""

    competitor: str
    length: int
    batch: int
    layers: int
    all_layers: int
    milliseconds: list[float]
    first_call_seconds: float | None
    peak_bytes: int | None  # None on the CPU, where PyTorch does not count
    density: float | None  # None: dense
    density_source: str
    outcomes: dict[str, int]  # of the attentions, for a competitor that reports them
    difference: float | None  # of the last token's logits from the first way's that ran, in the 2-norm
    error: str = ""
    sites: dict[str, int] = field(default_factory=dict)  # what became of the attentions, in words

    @property
    def median(self) -> float:
        """Median milliseconds of the layers that were built; NaN after an error."""
        return statistics.median(self.milliseconds) if self.milliseconds else float("nan")

    @property
    def ttft(self) -> float:
        """Milliseconds for all layers of the model: scaled from those that were built."""
        return self.median * self.all_layers / self.layers

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data; medians included, for readers of the JSON."""
        return {**asdict(self), "median_ms": self.median, "ttft_ms": self.ttft}


def wait(device: str) -> None:
    """Until a CUDA device has done what it was given; at once on the CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


class Clock:
    """Times, peak memory and results of calls on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.cuda = torch.device(device).type == "cuda"

    def call(self, competitor: Competitor, inputs: dict[str, Any]) -> tuple[float, int | None, Tensor]:
        """(seconds, peak bytes, last token's logits) of one call, the wait for the device included."""
        wait(self.device)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        logits = competitor.run(**inputs)
        wait(self.device)
        seconds = time.perf_counter() - begin
        peak = torch.cuda.max_memory_allocated() if self.cuda else None
        return seconds, peak, logits[:, -1].float().cpu()


@torch.no_grad()
def measure(
    model: nn.Module,
    shape: Shape,
    names: list[str],
    *,
    device: str,
    length: int,
    batch: int = 1,
    rounds: int = 3,
    set_density: float | None = None,
    density_source: str = "",
    options: dict[str, Any] | None = None,
    recorded: tuple[type[Exception], ...] = (torch.OutOfMemoryError,),
    patience: float = float("inf"),
) -> list[Row]:
    """A row for each of ``names`` (baselines, and "sampleattn") at one prompt length.

    A competitor that fails with one of ``recorded`` gets a row that says so, and the others go on.
    ``rounds`` 0: the first call is what is timed, with whatever it compiles. A competitor whose first call
    took more than ``patience`` seconds has one round, or, if it compiles nothing, that call alone.
    """
    torch._dynamo.reset()
    vocabulary = shape.config.vocab_size
    tokens = torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(length))
    inputs = {"input_ids": tokens.to(device), "logits_to_keep": 1, "use_cache": True}
    clock, runs = Clock(device), {name: competitors.build(name, model, options or {}) for name in names}
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, int | None] = dict.fromkeys(names)
    logits: dict[str, Tensor] = {}
    sites: dict[str, list[Any]] = {name: [] for name in names}
    errors: dict[str, str] = {}
    with density_set(device, set_density) as chosen:
        for attempt in range(rounds + 1):
            for name in names:
                slow = first.get(name, 0.0) > patience
                if name in errors or slow and times[name]:
                    continue
                try:
                    if attempt == 0:
                        call, sites[name] = _first_call(clock, runs[name], inputs, model)
                        first[name] = call[0]
                        counts = not rounds or call[0] > patience and name not in competitors.COMPILED
                        if not counts:
                            continue
                    else:
                        call = clock.call(runs[name], inputs)
                    seconds, peaks[name], logits[name] = call
                    times[name].append(1e3 * seconds)
                except recorded as error:
                    errors[name] = _in_words(error)
                    times[name].clear()
                if name in errors:  # behind the handler: what failed holds its tensors until then
                    gc.collect()
                    torch.cuda.empty_cache()
    kept = chosen.kept.get(length) if chosen else None
    reference = next((name for name in names if name in logits), names[0])
    return [
        Row(
            name,
            length,
            batch,
            shape.layers,
            shape.all_layers,
            times[name],
            first.get(name),
            peaks[name],
            kept if name in SPARSE else None,
            (density_source if kept is not None or not chosen else "nothing was sampled")
            if name in SPARSE
            else "dense",
            dict(Counter(site.outcome for site in sites[name])),
            _difference(logits, name, reference),
            errors.get(name, ""),
            dict(Counter(map(_site_in_words, sites[name]))),
        )
        for name in names
    ]


def _difference(logits: dict[str, Tensor], name: str, reference: str) -> float | None:
    if name == reference or name not in logits or reference not in logits:
        return None
    expected = logits[reference]
    return ((logits[name] - expected).norm() / expected.norm()).item()


def _in_words(error: Exception) -> str:
    """An error as a table has it. Dynamo and Inductor wrap what a kernel or the allocator raised."""
    text = str(error).strip()
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text:
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        return f"out of memory (asked for {asked[1]})" if asked else "out of memory"
    return textwrap.shorten(f"{type(error).__name__}: {text.partition(chr(10))[0]}", 120, placeholder=" ...")


def _site_in_words(site: Any) -> str:
    kernel = f", {site.kernel}" if site.kernel else ""
    return f"{site.outcome} ({site.form or site.spelling}{kernel}), head dim {site.head_dim}: {site.reason}"


def _first_call(
    clock: Clock, competitor: Competitor, inputs: dict[str, Any], model: nn.Module
) -> tuple[tuple[float, int | None, Tensor], list[Any]]:
    """The call that compiles, as ``Clock.call`` gives it, and the report's sites."""
    from sa_compile import report

    with report.collect() as reports:
        call = clock.call(competitor, inputs)
    sites = [site for graph in reports for site in graph.sites]
    if competitor.name == "interface":
        from sa_compile import hf

        sites = list(hf.report(model).sites)
        hf.reset_report(model)
    return call, sites


def parse_goals(texts: list[str], names: list[str], lengths: list[int]) -> dict[str, list[float]]:
    """``BASELINE=RATIO,...`` strings, one ratio a length, as plain data."""
    goals = {}
    for text in texts:
        name, _, ratios = text.partition("=")
        try:
            goals[name] = [float(ratio) for ratio in ratios.split(",")]
        except ValueError:
            raise ValueError(f"--goal must be BASELINE=RATIOS with numbers, got {text!r}") from None
        if name not in names or len(goals[name]) != len(lengths):
            raise ValueError(
                f"--goal needs one of the baselines ({', '.join(names)}) and {len(lengths)} ratios, one a "
                f"length, got {text!r}"
            )
    return goals


def parse_options(texts: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` strings as options of the backend."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option must be NAME=VALUE, got {text!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def prepare(arguments: argparse.Namespace) -> tuple[Shape, nn.Module]:
    """The model that the arguments describe, its MLPs chunked if they ask for it."""
    shape = load_shape(arguments.model, layers=arguments.layers, narrow=arguments.narrow)
    model = shape.build(arguments.device, getattr(torch, arguments.dtype))
    if arguments.chunked_mlp:
        chunk_mlps(model, arguments.chunked_mlp)
    return shape, model


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises ValueError for a density or a number of rounds that cannot be."""
    if arguments.density is not None and not 0 < arguments.density <= 1:
        raise ValueError(f"--density must be in (0, 1], got {arguments.density}")
    if arguments.rounds < 0:
        raise ValueError(f"--rounds must not be negative, got {arguments.rounds}")


def run(arguments: argparse.Namespace) -> int:
    """``bench ttft``: measure every length, print the table, write the JSON; returns the exit status."""
    names = [name for name in arguments.baselines.split(",") if name]
    competitors.check(names, arguments.device)
    check_numbers(arguments)
    if arguments.density is not None and arguments.density_from is not None:
        raise ValueError("--density and --density-from exclude each other")
    goals = parse_goals(arguments.goal, names, arguments.lengths)
    shape, model = prepare(arguments)
    options = parse_options(arguments.option)
    rows: list[Row] = []
    result: dict[str, Any] = {}
    for length in arguments.lengths:
        set_density, source = density.for_length(arguments, length)
        rows += measure(
            model,
            shape,
            [*names, OURS],
            device=arguments.device,
            length=length,
            batch=arguments.batch,
            rounds=arguments.rounds,
            set_density=set_density,
            density_source=source,
            options=options,
        )
        result = {
            **provenance(arguments.device, revision=arguments.revision),
            "benchmark": "ttft",
            "model": shape.name,
            "weights": shape.weights,
            "note": shape.note,
            "narrow": arguments.narrow,
            "dtype": arguments.dtype,
            "chunked_mlp": arguments.chunked_mlp,
            "rounds": arguments.rounds,
            "goals": goals,
            "lengths": arguments.lengths,
            "options": options,
            "method": SampleAttentionConfig.from_options(options).method,
            "rows": [row.to_dict() for row in rows],
        }
        if arguments.json:  # after each length, so that a run that is cut off leaves what it measured
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.compile_time:
        from sa_compile.lab.bench.compile_time import cold_and_warm

        compiled = [name for name in (*names, OURS) if name in competitors.COMPILED]
        result["compile"] = [cold_and_warm(arguments, name, arguments.lengths[0]) for name in compiled]
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    return 0
