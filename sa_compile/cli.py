"""The command line: ``python -m sa_compile explain <model folder or config> --seq-len N``."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sa_compile.lab.bench.cli import add_commands as add_bench_commands
from sa_compile.lab.eval.cli import add_commands as add_eval_commands
from sa_compile.lab.tokens import length_from
from sa_compile.lab.tune.cli import add_commands as add_tune_commands

if TYPE_CHECKING:
    from sa_compile.report import Report

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2: bad arguments)."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError, TypeError) as error:
        print(f"sa_compile: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sa_compile", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    explain = commands.add_parser(
        "explain",
        help="print what the backend would do to a model's attention; reads no weights, computes nothing",
    )
    explain.add_argument("model", help="a Hugging Face model folder, or its config.json")
    explain.add_argument(
        "--seq-len", type=length_from, required=True, help="prompt length in tokens: 8192, 128K"
    )
    explain.add_argument("--batch", type=int, default=1, help="prompts in the batch (default 1)")
    explain.add_argument(
        "--padding", action="store_true", help="pass a 2-D attention mask, as padded batches do"
    )
    explain.add_argument("--no-cache", action="store_true", help="call the model with use_cache=False")
    explain.add_argument(
        "--attn", choices=("sdpa", "eager"), help="attention implementation (default: the model's)"
    )
    explain.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default bfloat16")
    explain.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the backend, repeatable",
    )
    explain.add_argument("--json", metavar="FILE", help="also write the report as JSON")
    explain.set_defaults(run=_explain)
    options = commands.add_parser("options", help="print every option of the backend as a Markdown table")
    options.set_defaults(run=_options)
    add_eval_commands(commands)
    add_tune_commands(commands)
    add_bench_commands(commands)
    return parser


def _options(arguments: argparse.Namespace) -> int:
    from sa_compile.config import options_table

    print(options_table())
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    if arguments.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {arguments.batch}")
    report = explain_config(
        arguments.model,
        seq_len=arguments.seq_len,
        batch=arguments.batch,
        padding=arguments.padding,
        use_cache=not arguments.no_cache,
        attn=arguments.attn,
        dtype=arguments.dtype,
        options=dict(_parse_option(text) for text in arguments.option),
    )
    print(report)
    if arguments.json:
        Path(arguments.json).write_text(report.to_json() + "\n")
    return 0


def _parse_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option must be NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def explain_config(
    model: str,
    *,
    seq_len: int,
    batch: int = 1,
    padding: bool = False,
    use_cache: bool = True,
    attn: str | None = None,
    dtype: str = "bfloat16",
    options: dict[str, Any] | None = None,
) -> Report:
    """The report for a Hugging Face causal LM prefilling ``[batch, seq_len]`` tokens, from its config alone.

    The model is built of fake tensors: no weights, no memory, no computation. Errors: ``OSError`` if the
    folder or file is not there, ``ValueError`` if it describes no causal LM.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from transformers import AutoConfig, AutoModelForCausalLM

    from sa_compile.inspection import explain

    if not Path(model).exists():
        raise FileNotFoundError(f"no such model folder or config file: {model}")
    config = AutoConfig.from_pretrained(model)
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), torch.no_grad():
        module = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), **({"attn_implementation": attn} if attn else {})
        ).eval()
        tokens = torch.zeros(batch, seq_len, dtype=torch.long)
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": use_cache}
        if "logits_to_keep" in signature(module.forward).parameters:
            inputs["logits_to_keep"] = 1
        if padding:
            inputs["attention_mask"] = torch.ones_like(tokens)
        return explain(module, options=options, **inputs)
