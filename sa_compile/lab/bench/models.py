"""``bench models``: times to first token of the shapes of models that people run, in every way that does.

Random weights, so the kept share of attention is set. Of a model only so many layers are built that their mix
is the model's own and one GPU holds them; times are of the layers that were built. A way that fails, out of
memory or unsupported, is a result. What FILE already holds of the same commit is not measured again.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from sa_compile.config import SampleAttentionConfig
from sa_compile.lab.bench import competitors, parts
from sa_compile.lab.bench.competitors import OURS
from sa_compile.lab.bench.shape import load_shape
from sa_compile.lab.bench.ttft import check_numbers, measure, parse_options
from sa_compile.lab.bench.ttft_table import TITLES
from sa_compile.lab.tokens import length_text
from sa_compile.provenance import provenance

BENCHMARK = "models"
REST = "rest"
# A way may leave a model's layers to Dynamo one by one, where the model breaks its graph in each.
_RECOMPILES = {"recompile_limit": 256, "accumulated_recompile_limit": 4096}
Result = dict[str, Any]

_TITLE = """# bench models

Milliseconds of a prefill with a new KV cache and the last token's logits, batch 1, of the layers that
were built. eager: transformers' default, not compiled; Inductor: `torch.compile(model)`; FlexAttention:
`attn_implementation="flex_attention"`, compiled, with what otherwise breaks its graph kept out of it (an
option that warns, a cache made inside); without attention: Inductor with attentions that return their
queries, so that projections, experts and the rest are left; exact forms alone: sampleattn with
`min_seq_len` above every prompt; sampleattn: its default. Every way runs the same weights; medians of
calls. "attention" is a way's time less that without attention, and how often that of sampleattn is
faster: a difference of two times, uncertain where it is small beside them, and eager's holds also what
compiling saves elsewhere. The last column says little of mixtures of experts in bfloat16: Inductor alone,
which changes only how numbers are rounded, is as far from eager as what is exact here.
flash-linear-attention's gated delta rule, which keeps Dynamo out, is one operator in every way: otherwise
it breaks the graph in each of its layers."""


@dataclass(frozen=True)
class Case:
    """A shipped shape, and how much of it is built."""

    shape: str
    layers: int
    mix: str  # of the attentions in these layers
    changed: Mapping[str, Any] = field(default_factory=dict)


CASES = (
    Case("gpt-oss-20b", 2, "a 128-wide sliding layer and a full one, attention sinks, head dim 64"),
    Case("gemma-4-26b-a4b", 6, "five 1024-wide sliding layers of head dim 256, one full layer of 512"),
    Case("qwen3.6-27b", 4, "three gated DeltaNet layers, one full layer of head dim 256"),
    Case(
        "deepseek-v3",
        1,
        "multi-head latent attention, head dims 192 and 128; a mixture of experts",
        {"first_k_dense_replace": 0},
    ),
)


def chosen(patterns: Sequence[str]) -> list[Case]:
    """The cases that any of ``patterns`` names, all without one; ValueError for a pattern that names none."""
    for pattern in patterns:
        if not any(fnmatch(case.shape, pattern) for case in CASES):
            raise ValueError(
                f"--only: no model {pattern!r}; models: {', '.join(case.shape for case in CASES)}"
            )
    return [case for case in CASES if not patterns or any(fnmatch(case.shape, p) for p in patterns)]


def run(arguments: argparse.Namespace) -> int:
    """Measure, print each table and write the JSON anew after it; returns the exit status."""
    ways = [way for way in arguments.ways.split(",") if way]
    if not ways:
        raise ValueError(f"--ways must name at least one of {', '.join((*competitors.BASELINES, OURS))}")
    competitors.check([way for way in ways if way != OURS], arguments.device, "--ways")
    check_numbers(arguments)
    options = parse_options(arguments.option)
    result: Result = {"benchmark": BENCHMARK, "runs": [], "skipped": []}
    if arguments.json and arguments.json.exists():
        result = json.loads(arguments.json.read_text())
        if result.get("benchmark") != BENCHMARK:
            raise ValueError(f"--json: {arguments.json} is there and holds no result of 'bench models'")
        result["skipped"] = []
    begin = time.monotonic()
    for case in chosen(arguments.only):
        shape = load_shape(case.shape, layers=case.layers, narrow=arguments.narrow, changed=case.changed)
        model = None
        for length in arguments.lengths:
            one: Result = {
                **provenance(arguments.device, revision=arguments.revision),
                "model": case.shape,
                "mix": case.mix,
                "note": shape.note,
                "layers": shape.layers,
                "all_layers": shape.all_layers,
                "length": length,
                "narrow": arguments.narrow,
                "dtype": arguments.dtype,
                "density": arguments.density,
                "rounds": arguments.rounds,
                "ways": ways,
                "options": options,
                "method": SampleAttentionConfig.from_options(options).method,
            }
            if any(_same(one, done) for done in result["runs"]):
                continue
            if time.monotonic() - begin > 60 * arguments.minutes:
                result["skipped"].append(f"{case.shape} {length_text(length)}")
                continue
            if model is None:
                model = shape.build(arguments.device, getattr(torch, arguments.dtype))
            one["kernels"] = _kernels(model)
            one["memory_gib"] = _memory(arguments.device)
            with torch._dynamo.config.patch(_RECOMPILES), parts.delta_rule_as_one_op(model):
                rows = measure(
                    model,
                    shape,
                    ways,
                    device=arguments.device,
                    length=length,
                    rounds=arguments.rounds,
                    set_density=arguments.density,
                    density_source="set (--density)",
                    options=options,
                    recorded=(Exception,),
                    patience=arguments.patience,
                )
            one["rows"] = [row.to_dict() for row in rows]
            result["runs"] = [old for old in result["runs"] if _place(old) != _place(one)] + [one]
            print(f"{caption(one)}\n\n{table([one])}\n", flush=True)
            _write(result, arguments.json)
        del model
        gc.collect()
        torch.cuda.empty_cache()
    if result["skipped"]:
        _write(result, arguments.json)
        print(f"skipped after {arguments.minutes:g} minutes: {', '.join(result['skipped'])}")
    return 0


def _write(result: Result, file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n")


def _place(one: Result) -> tuple[Any, ...]:
    return one["model"], one["length"], one["narrow"]


def _same(one: Result, done: Result) -> bool:
    keys = ("revision", "device", "versions", "layers", "ways", "options", "density", "dtype")
    return _place(one) == _place(done) and all(one[key] == done[key] for key in keys)


def _memory(device: str) -> float | None:
    if torch.device(device).type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)


def _kernels(model: torch.nn.Module) -> dict[str, str]:
    """What of the model beside attention runs as what: experts, linear attention."""
    found = {}
    if any(hasattr(module, "num_experts") for module in model.modules()):
        found["experts"] = str(getattr(model.config, "_experts_implementation", "eager"))
    if any("DeltaNet" in type(module).__name__ for module in model.modules()):
        found["gated delta rule"] = _flash_linear_attention()
    return found


def _flash_linear_attention() -> str:
    """Where transformers takes the gated delta rule from: it imports the package only if that works."""
    if "fla.ops.gated_delta_rule" not in sys.modules:
        return "transformers' loop in PyTorch"
    return f"fla-core {metadata.version('fla-core')}, one operator"


def caption(one: Result) -> str:
    """What was measured, as one line above its table."""
    parts = [f"{one['layers']} of {one['all_layers']} layers ({one['mix']})", one["dtype"], "random weights"]
    parts += [f"{one['device']}" + (f", {one['memory_gib']:g} GiB" if one["memory_gib"] else "")]
    parts += [f"{one['density']:.0%} of the blocks kept (set), method {one['method']!r}"]
    parts += [f"{name}: {kernel}" for name, kernel in one["kernels"].items()]
    versions = one["versions"]
    parts += [
        ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "transformers", "triton") if name in versions
        )
    ]
    parts += ["narrowed: not the model's width"] if one["narrow"] else []
    return f"{one['model']}: {'; '.join(parts)}. {one['note']}".rstrip()


def table(runs: Sequence[Result]) -> str:
    """Markdown, a row a length and way: milliseconds, how often faster sampleattn is, peak, attentions."""
    lines = []
    for one in runs:
        rows = {row["competitor"]: row for row in one["rows"]}
        ours, rest = rows.get(OURS), rows.get(REST)
        for name, row in rows.items():
            line = [length_text(one["length"]), TITLES[name]]
            line += [row["error"] or f"{row['median_ms']:,.1f}", _times_faster(row, ours)]
            line += _attention(row, ours, rest)
            line += ["-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f}"]
            line += ["-" if row["first_call_seconds"] is None else f"{row['first_call_seconds']:.1f}"]
            line += [", ".join(f"{n} {outcome}" for outcome, n in row["outcomes"].items()) or "-"]
            line += ["-" if row["density"] is None else f"{row['density']:.1%}"]
            # What random strips attend has nothing to do with what dense attention gives.
            dense = row["difference"] is not None and row["density"] is None and name != REST
            lines.append([*line, f"{row['difference']:.1%}" if dense else "-"])
    headers = ["tokens", "way", "ms", "sampleattn is faster by", "attention (ms)", "attention: faster by"]
    headers += ["peak GiB", "first call (s)"]
    headers += ["attentions", "kept", "logits: off the first way"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def _times_faster(row: Result, ours: Result | None) -> str:
    if ours is None or row is ours or row["competitor"] == REST or row["error"] or ours["error"]:
        return "-"
    return f"{row['median_ms'] / ours['median_ms']:.2f}"


def _attention(row: Result, ours: Result | None, rest: Result | None) -> list[str]:
    """What attention takes of a way's time, and how many times that of sampleattn it is."""
    if rest is None or row is rest or row["error"] or rest["error"]:
        return ["-", "-"]
    mine = row["median_ms"] - rest["median_ms"]
    if ours is None or ours["error"] or row is ours:
        return [f"{mine:,.1f}", "-"]
    return [f"{mine:,.1f}", f"{mine / (ours['median_ms'] - rest['median_ms']):.2f}"]


def _commit(one: Result) -> str:
    # A file that was put together otherwise than by :func:`run` says how.
    return f"Commit {one['revision']}{f'; {how}' if (how := one.get('how')) else ''}."


def page(results: Sequence[Result]) -> str:
    """Markdown: a section a model, with the command and the commit of each of its runs."""
    runs = [one for result in results for one in result["runs"]]
    parts = [_TITLE]
    for model in dict.fromkeys(one["model"] for one in runs):
        mine = sorted((one for one in runs if one["model"] == model), key=lambda one: one["length"])
        parts += [f"## {model}", *dict.fromkeys(map(caption, mine)), table(mine)]
        sites = dict.fromkeys(
            f"- {TITLES[row['competitor']]}: {text}"
            for one in mine
            for row in one["rows"]
            for text in row["sites"]
        )
        parts += ["\n".join(sites)] if sites else []
        parts += dict.fromkeys(f"    {one['command']}\n\n{_commit(one)}" for one in mine)
    return "\n\n".join(parts) + "\n"
