"""Prompts of many lengths through one compiled model: ``python -m sa_compile bench lengths``.

A server's prompts have a length each. Compiled code must fit them all: few prefill graphs, and no memory that
stays behind a prompt.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from sa_compile import report
from sa_compile.lab.bench.ttft import parse_options, prepare, wait
from sa_compile.model_call import cache_argument
from sa_compile.provenance import provenance

MOST_GRAPHS = 3
SETTLED_AFTER = 3  # prompts
MOST_GROWTH = 1 << 20  # bytes, on a device whose memory PyTorch counts
MIB = 1 << 20


@dataclass(frozen=True)
class Prompt:
    """One prompt and what it left behind: ``held_bytes`` in tensors (CUDA) or of the process (CPU)."""

    length: int
    seconds: float
    graphs: int  # prefill graphs compiled so far
    held_bytes: int
    reserved_bytes: int | None  # by PyTorch's allocator, CUDA only


def random_lengths(prompts: int, shortest: int, longest: int, seed: int) -> list[int]:
    """``prompts`` lengths, evenly distributed over [shortest, longest]; ValueError for bad arguments."""
    if prompts < 1 or not 2 <= shortest <= longest:
        raise ValueError(
            "bench lengths needs --prompts of at least 1 and 2 <= --shortest <= --longest, got "
            f"{prompts}, {shortest} and {longest}"
        )
    draw = random.Random(seed)
    return [draw.randint(shortest, longest) for _ in range(prompts)]


@torch.no_grad()
def measure(model: nn.Module, lengths: list[int], device: str, options: dict[str, Any]) -> list[Prompt]:
    """Prefill a prompt of each length, in this order, through one compiled model."""
    from transformers import DynamicCache

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="sampleattn", options=dict(options))
    config: Any = model.config
    found = []
    with report.collect() as reports:
        for length in lengths:
            tokens = torch.randint(0, config.vocab_size, (1, length), device=device)
            wait(device)
            begin = time.perf_counter()
            compiled(input_ids=tokens, logits_to_keep=1, **{cache_argument(model): DynamicCache()})
            wait(device)
            seconds = time.perf_counter() - begin
            del tokens
            gc.collect()
            graphs = sum(bool(graph.sites) for graph in reports)
            found.append(Prompt(length, seconds, graphs, _held(device), _reserved(device)))
    return found


def _held(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _reserved(device: str) -> int | None:
    return torch.cuda.memory_reserved() if torch.device(device).type == "cuda" else None


def growth(prompts: list[Prompt]) -> int:
    """Bytes held after the worst later prompt beyond what the third left; 0 for three prompts or fewer."""
    later = prompts[SETTLED_AFTER:]
    return max((prompt.held_bytes - prompts[SETTLED_AFTER - 1].held_bytes for prompt in later), default=0)


def table(result: dict[str, Any]) -> str:
    """Markdown: the graphs and the growth against what is wanted, then one line a prompt."""
    prompts = [Prompt(**prompt) for prompt in result["prompts"]]
    goals = [
        ["prefill graphs", str(prompts[-1].graphs), f"<= {MOST_GRAPHS}"],
        ["MiB held more than after prompt 3", f"{growth(prompts) / MIB:.2f}", f"<= {MOST_GROWTH // MIB}"],
    ]
    lines = [
        [number, p.length, f"{p.seconds:.3f}", p.graphs, f"{p.held_bytes / MIB:.1f}"]
        for number, p in enumerate(prompts, start=1)
    ]
    caption = f"{result['model']}, {result['layers']} layers, {result['device']}, {result['dtype']}."
    headers = ["prompt", "tokens", "seconds", "graphs so far", "MiB held"]
    return "\n\n".join(
        [caption, tabulate(goals, ["", "found", "wanted"], "github"), tabulate(lines, headers, "github")]
    )


def run(arguments: argparse.Namespace) -> int:
    """``bench lengths``: measure, print the table, write the JSON; 1 if a goal is missed on CUDA."""
    lengths = random_lengths(arguments.prompts, arguments.shortest, arguments.longest, arguments.seed)
    shape, model = prepare(arguments)
    prompts = measure(model, lengths, arguments.device, parse_options(arguments.option))
    result = {
        **provenance(arguments.device, revision=arguments.revision),
        "benchmark": "lengths",
        "model": shape.name,
        "layers": shape.layers,
        "dtype": arguments.dtype,
        "prompts": [asdict(prompt) for prompt in prompts],
    }
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    counted = torch.device(arguments.device).type == "cuda"  # a process's size is no count of tensors
    return int(prompts[-1].graphs > MOST_GRAPHS or counted and growth(prompts) > MOST_GROWTH)
