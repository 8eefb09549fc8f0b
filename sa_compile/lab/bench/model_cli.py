"""Benchmarks of whole models: ``bench ttft``, ``models``, ``breakdown``, ``lengths`` and others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sa_compile.lab.tokens import length_from, lengths_from


def add_benchmarks(benchmarks: Any) -> None:
    """Add the subcommands; nothing heavy is imported before one of them runs."""
    ttft = benchmarks.add_parser("ttft", help="time to first token of a model against other ways to run it")
    _add_model(ttft, baselines="eager")
    _add_density(ttft)
    ttft.add_argument(
        "--goal",
        action="append",
        default=[],
        metavar="BASELINE=RATIOS",
        help="how many times faster than a baseline is wanted, a number (0: none) a length: flash2=1.6,2.4",
    )
    ttft.add_argument("--compile-time", action="store_true", help="also compile in two fresh processes each")
    ttft.set_defaults(run=_ttft)
    _add_models(benchmarks)
    breakdown = benchmarks.add_parser(
        "breakdown", help="sampling, selection, attention and the rest by layer"
    )
    _add_model(breakdown, baselines=None)
    _add_density(breakdown)
    breakdown.add_argument("--chart", metavar="FILE", type=Path, help="draw the layers as PNG")
    breakdown.set_defaults(run=_breakdown)
    lengths = benchmarks.add_parser("lengths", help="graphs and memory over prompts of random lengths")
    _add_shape(lengths)
    _add_device(lengths)
    lengths.add_argument("--prompts", type=int, default=50, help="default 50")
    lengths.add_argument("--shortest", type=length_from, default=1 << 10, help="tokens (default 1024)")
    lengths.add_argument("--longest", type=length_from, default=1 << 16, help="tokens (default 65536)")
    lengths.add_argument("--seed", type=int, default=0)
    lengths.set_defaults(run=_lengths_of_prompts)
    memory = benchmarks.add_parser("memory", help="will a prompt fit: the peak of a prefill, without a GPU")
    _add_shape(memory)
    memory.add_argument("--lengths", type=lengths_from, required=True, help="tokens: 512K,1M")
    memory.add_argument("--batch", type=int, default=1)
    memory.add_argument("--memory", type=float, metavar="GIB", help="say whether it fits into so much")
    memory.set_defaults(run=_memory)
    compile_time = benchmarks.add_parser("compile", help="seconds of our passes and of the whole compile")
    _add_model(compile_time, baselines="inductor")
    compile_time.add_argument("--child", help=argparse.SUPPRESS)
    compile_time.set_defaults(run=_compile)


def _add_models(benchmarks: Any) -> None:
    models = benchmarks.add_parser(
        "models", help="time to first token of models that people run, in every way"
    )
    models.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="models to measure, such as gpt-oss-20b or 'gemma*' (default: all; a wrong name lists them)",
    )
    models.add_argument(
        "--lengths", type=lengths_from, default=[32 << 10, 128 << 10], help="tokens (default 32K,128K)"
    )
    models.add_argument(
        "--ways", default="eager,inductor,flex,exact,sampleattn,rest", help="default: %(default)s"
    )
    models.add_argument(
        "--density", type=float, default=0.1, help="share of the causal blocks kept (default 0.1)"
    )
    models.add_argument("--rounds", type=int, default=3, help="timed calls of each (default 3)")
    models.add_argument(
        "--patience",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="one timed call of what takes longer the first time (default: no limit)",
    )
    models.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin nothing after so long (default: no limit)"
    )
    models.add_argument("--narrow", action="store_true", help="same layers and heads, but a tiny width")
    models.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    models.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the backend")
    models.add_argument("--json", metavar="FILE", type=Path, help="write the results as JSON, or add to them")
    models.add_argument("--revision", help="the code's commit, where git cannot tell")
    _add_device(models)
    models.set_defaults(run=_models)


def _add_model(parser: argparse.ArgumentParser, baselines: str | None) -> None:
    _add_shape(parser)
    _add_device(parser)
    parser.add_argument(
        "--lengths", type=lengths_from, required=True, help="tokens, comma-separated: 8K,128K,1M"
    )
    if baselines is not None:
        parser.add_argument("--baselines", default=baselines, help=f"comma-separated (default {baselines})")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="timed calls of each (default 3); 0: the first call alone, compilation included",
    )


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a shipped shape, a config.json or a model folder")
    parser.add_argument("--layers", type=int, help="build only so many layers; times are scaled to all")
    parser.add_argument("--narrow", action="store_true", help="same layers and heads, but a tiny width")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--chunked-mlp", type=int, metavar="TOKENS", help="run MLPs so many rows at a time")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the backend")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results as JSON")
    parser.add_argument("--revision", help="the code's commit, where git cannot tell")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", help="default cuda")


def _add_density(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--density", type=float, help="share of the causal blocks that is kept")
    parser.add_argument("--density-from", metavar="FILE", help="density by length, from a result of 'eval'")
    parser.add_argument(
        "--density-rule", default="chunked", help="whose density in that file (default chunked)"
    )


def _ttft(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.ttft import run

    return run(arguments)


def _models(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.models import run

    return run(arguments)


def _breakdown(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.breakdown import run

    return run(arguments)


def _lengths_of_prompts(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.lengths import run

    return run(arguments)


def _memory(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.memory import run

    return run(arguments)


def _compile(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.compile_time import run

    return run(arguments)
