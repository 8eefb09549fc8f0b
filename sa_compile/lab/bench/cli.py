"""``python -m sa_compile bench``: benchmarks, a subcommand each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sa_compile.lab.bench import model_cli
from sa_compile.lab.tokens import length_from


def add_commands(commands: Any) -> None:
    """Add ``bench`` and its subcommands; nothing heavy is imported before one of them runs."""
    bench = commands.add_parser("bench", help="measure the kernels and whole models")
    benchmarks = bench.add_subparsers(required=True, metavar="benchmark")
    _add_cpu_ops(benchmarks)
    _add_exact_forms(benchmarks)
    _add_ops(benchmarks)
    _add_report(benchmarks)
    model_cli.add_benchmarks(benchmarks)


def _add_cpu_ops(benchmarks: Any) -> None:
    parser = benchmarks.add_parser("cpu-ops", help="the CPU ops against dense attention")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results as JSON")
    parser.add_argument("--seq-len", type=length_from, default=16384)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, nargs="+", default=[8, 2])
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument(
        "--density", type=float, default=0.125, help="share of the causal blocks that is kept"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.set_defaults(run=_cpu_ops)


def _cpu_ops(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.cpu_ops import run

    return run(arguments)


def _add_exact_forms(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "exact-forms", help="attention that is not sampled, on the CPU, against Inductor"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results as JSON")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--keys", type=int, nargs="+", default=[1024, 4096, 8192, 32768])
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.set_defaults(run=_exact_forms)


def _exact_forms(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.exact_forms import run

    return run(arguments)


def _add_ops(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "ops", help="the ops on a CUDA device against FlexAttention and dense attention"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="cases to measure, such as random_32k or 'whole_*' (default: all; a wrong name lists them)",
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no case after so long (default: no limit)"
    )
    parser.add_argument("--revision", help="the code's commit, where git cannot tell")
    parser.set_defaults(run=_ops)


def _ops(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.ops.cases import chosen
    from sa_compile.lab.bench.ops.run import run

    return run(chosen(arguments.only), arguments.json, arguments.minutes, arguments.revision)


def _add_report(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "report", help="tables and plots from results of 'bench ops', 'ttft', 'models', 'breakdown' ..."
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="JSON files")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the pages and their pictures"
    )
    parser.add_argument(
        "--headline",
        nargs=2,
        metavar=("MODEL", "PAGE"),
        help="also write this model's TTFT over all lengths between the marks of a page",
    )
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.bench.report import write, write_headline

    if arguments.headline:
        model, page = arguments.headline
        write_headline(arguments.results, model, Path(page))

    for path in write(arguments.results, arguments.out):
        print(path)
    return 0
