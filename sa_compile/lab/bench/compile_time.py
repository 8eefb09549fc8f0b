"""What compiling costs: ``python -m sa_compile bench compile``.

Each measurement is a process of its own with a cache folder of its own: the first finds it empty (cold), the
second finds what the first left (warm). Times are those that Dynamo keeps (``dynamo_timed``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from tabulate import tabulate

from sa_compile.lab.bench.competitors import COMPILED, OURS

# Names under which Dynamo keeps time, and what they are called here.
PASSES = "sampleattn_passes"
PHASES = {
    "passes": PASSES,
    "backend": "OutputGraph.call_user_compiler",
    "everything": "_compile.compile_inner",
}
MOST_SECONDS = 2.0  # of our passes, for a model of 40 layers
MOST_SHARE = 0.05


def cold_and_warm(arguments: argparse.Namespace, name: str, length: int) -> dict[str, Any]:
    """``{"competitor", "length", "cold": {...}, "warm": {...}}``: seconds by phase, in two processes."""
    with tempfile.TemporaryDirectory() as cache:
        return {
            "competitor": name,
            "length": length,
            **{state: _process(arguments, name, length, cache) for state in ("cold", "warm")},
        }


def _process(arguments: argparse.Namespace, name: str, length: int, cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "sa_compile", "bench", "compile", "--child", name]
    command += ["--model", arguments.model, "--lengths", str(length), "--batch", str(arguments.batch)]
    command += ["--device", arguments.device, "--dtype", arguments.dtype]
    command += ["--layers", str(arguments.layers)] if arguments.layers else []
    command += ["--narrow"] if arguments.narrow else []
    command += ["--chunked-mlp", str(arguments.chunked_mlp)] if arguments.chunked_mlp else []
    for option in arguments.option:
        command += ["--option", option]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"compiling with {name!r} failed:\n{done.stderr[-2000:]}")
    times: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return times


def child(arguments: argparse.Namespace) -> int:
    """One process: compile once, print the seconds of each phase as JSON."""
    import torch
    from torch._dynamo.utils import compilation_time_metrics

    from sa_compile.lab.bench import competitors
    from sa_compile.lab.bench.ttft import parse_options, prepare

    shape, model = prepare(arguments)
    competitor = competitors.build(arguments.child, model, parse_options(arguments.option))
    tokens = torch.zeros(arguments.batch, arguments.lengths[0], dtype=torch.long, device=arguments.device)
    with torch.no_grad():
        begin = time.perf_counter()
        competitor.run(input_ids=tokens, logits_to_keep=1, use_cache=True)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        competitor.run(input_ids=tokens, logits_to_keep=1, use_cache=True)
        second = time.perf_counter() - begin
    found = {phase: sum(compilation_time_metrics.get(key, [])) for phase, key in PHASES.items()}
    print(json.dumps({**found, "first_call": first, "second_call": second, "layers": shape.layers}))
    return 0


def table(result: dict[str, Any]) -> str:
    """Markdown: seconds of each phase, a row a competitor and start; our passes as a share of the rest."""
    lines = []
    for entry in result["compile"]:
        for state in ("cold", "warm"):
            times = entry[state]
            others = times["backend"] - times["passes"]
            share = f"{times['passes'] / others:.1%}" if entry["competitor"] == OURS and others > 0 else "-"
            seconds = [f"{times[name]:.2f}" for name in ("passes", "backend", "everything", "first_call")]
            lines.append([entry["competitor"], state, *seconds, share])
    headers = ["backend", "start", "our passes (s)", "backend (s)", "torch.compile (s)", "first call (s)"]
    headers.append("passes / rest of the backend")
    caption = f"{result['model']}, {result['layers']} layers, {result['device']}"
    rows = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return "\n\n".join(part for part in (caption, rows, _goals(result["compile"])) if part)


def _goals(entries: list[dict[str, Any]]) -> str:
    """What our passes may take with warm caches; "" if ours was not measured.

    The share is of what ``torch.compile`` with Inductor takes, warm too; without that baseline, of what ours
    takes beside the passes.
    """
    warm = {entry["competitor"]: entry["warm"] for entry in entries}
    if OURS not in warm:
        return ""
    passes, whole = warm[OURS]["passes"], warm[OURS]["everything"]
    others, of_what = whole - passes, "the rest of torch.compile"
    if "inductor" in warm:
        others, of_what = warm["inductor"]["everything"], "torch.compile with Inductor"
    share = passes / others
    lines = [
        ["our passes", f"{passes:.2f} s", f"<= {MOST_SECONDS:g} s", _met(passes <= MOST_SECONDS)],
        [f"our passes / {of_what}", f"{share:.1%}", f"<= {MOST_SHARE:.0%}", _met(share <= MOST_SHARE)],
    ]
    headers = ["warm start", "found", "wanted", ""]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def _met(reached: bool) -> str:
    return "met" if reached else "MISSED"


def run(arguments: argparse.Namespace) -> int:
    """``bench compile``: cold and warm for each backend, print the table, write the JSON."""
    if arguments.child:
        return child(arguments)
    from sa_compile.lab.bench.shape import load_shape
    from sa_compile.provenance import provenance

    names = [*(name for name in arguments.baselines.split(",") if name), OURS]
    for name in names:
        if name not in COMPILED:
            raise ValueError(f"--baselines: {name!r} is not compiled; compiled: {', '.join(COMPILED)}")
    shape = load_shape(arguments.model, layers=arguments.layers, narrow=arguments.narrow)
    result = {
        **provenance(arguments.device, revision=arguments.revision),
        "benchmark": "compile",
        "model": shape.name,
        "narrow": arguments.narrow,
        "layers": shape.layers,
        "compile": [cold_and_warm(arguments, name, arguments.lengths[0]) for name in names],
    }
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0
