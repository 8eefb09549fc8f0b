"""The coverage census: does the backend keep every language model of transformers right?

Causal language models, models that take images or sounds with text, and sequence classifiers: each class is
built tiny with random weights and the head dims of its default config, compiled and compared with the
uncompiled model. Nothing is downloaded. A few models by name, then everything, then the page in docs:

    python examples/coverage.py --models LlamaForCausalLM,GPT2LMHeadModel
    python examples/coverage.py --json docs/data/coverage.json --resume
    python examples/coverage.py --from docs/data/coverage.json --docs

The exit status is 1 if an output is wrong, if the backend fails where plain torch.compile does not, or if
fewer than 95 % of the models with plain causal attention are rewritten.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sa_compile.lab.census import classes, table, tiny, variants, worker
from sa_compile.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coverage.md"
IMPLEMENTATIONS = ("sdpa", "eager")
# Each with a spelling or mask of its own: packed, window, chunk, latent heads, softcap, sinks, bias.
QUICK = {
    "LlamaForCausalLM": IMPLEMENTATIONS,
    "MistralForCausalLM": ("sdpa",),
    "Llama4ForCausalLM": ("sdpa",),
    "DeepseekV3ForCausalLM": ("sdpa",),
    "GPT2LMHeadModel": ("eager",),
    "OPTForCausalLM": ("eager",),
    "Gemma2ForCausalLM": ("eager",),
    "GptOssForCausalLM": ("eager",),
    "BloomForCausalLM": ("eager",),
}
POPULAR = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "DeepseekV3ForCausalLM",
    "GPT2LMHeadModel",
    "GptOssForCausalLM",
    "Olmo2ForCausalLM",
)
# Layers that unroll, a step a token or a chunk, into graphs that take minutes to capture.
SLOW = frozenset(
    {
        *(
            "jamba",
            "kimi_linear",
            "qwen4_exp",
            "recurrent_gemma",
            "reformer",
            "rwkv",
            "xlstm",
            "xmod",
            "zamba",
        ),
        *("bamba", "falcon_mamba", "mamba", "mamba2", "zamba2"),
    }
)
Task = tuple[str, str, str, tuple[variants.Variant, ...]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the census, or print one that was run; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.source:
        data = json.loads(arguments.source.read_text())
    else:
        source = provenance(command=" ".join(["python", "examples/coverage.py", *sys.argv[1:]]))
        data = {**source, "records": _run(arguments)}
    if arguments.json and not arguments.source:
        _write(arguments.json, data)
    if arguments.docs:
        PAGE.write_text(table.markdown(data))
    total = table.totals(data["records"])
    print(table.summary(total))
    return 0 if total.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", help="class names, separated by commas (default: all)")
    parser.add_argument(
        "--attn", choices=IMPLEMENTATIONS, help="one attention implementation (default: both)"
    )
    parser.add_argument("--kind", choices=classes.KINDS, help="classes of one kind (default: all)")
    parser.add_argument("--quick", action="store_true", help="nine models and fewer variants: a minute")
    parser.add_argument(
        "--inductor", action="store_true", help="add a dozen popular models compiled by Inductor"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the census as data")
    parser.add_argument(
        "--resume", action="store_true", help="go on from FILE's lines (FILE.lines) of a run cut short"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="read a census instead of running it"
    )
    parser.add_argument("--docs", action="store_true", help="write docs/coverage.md")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="begin no model after that time (default: run all)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    return parser


def _tasks(arguments: argparse.Namespace) -> list[Task]:
    kinds = {name: kind for kind in classes.KINDS for name in classes.model_names(kind)}
    types = {name: classes.model_names(kinds[name])[name] for name in kinds}
    wanted = (arguments.kind,) if arguments.kind else classes.KINDS
    chosen = [name for name in kinds if kinds[name] in wanted]
    if arguments.models or arguments.quick:
        chosen = arguments.models.split(",") if arguments.models else list(QUICK)
    unknown = [name for name in chosen if name not in kinds]
    if unknown:
        raise SystemExit(f"--models: {unknown[0]!r} is none of the classes of this transformers")
    attns = (arguments.attn,) if arguments.attn else IMPLEMENTATIONS
    tasks = [
        (name, types[name], attn, variants.QUICK if arguments.quick else _variants(name, types[name], attn))
        for name in chosen
        for attn in attns
        if not arguments.quick or attn in QUICK.get(name, IMPLEMENTATIONS)
    ]
    # Kind by kind, each class in one spelling; then the eager spelling of those that have two.
    tasks.sort(key=lambda task: task[2] == "eager" and tiny.offers_sdpa(task[0]))
    if arguments.inductor:
        tasks += [
            (name, types[name], attn, variants.INDUCTOR)
            for name in POPULAR
            if name in types
            for attn in attns
        ]
    return tasks


def _variants(name: str, model_type: str, attn: str) -> tuple[variants.Variant, ...]:
    """The eager spelling of a class that was censused with SDPA has the same masks: fewer will do."""
    second = attn == "eager" and tiny.offers_sdpa(name)
    kind = classes.kind_of(name)
    if kind == classes.MULTIMODAL:
        return variants.SHOWN
    if kind == classes.CLASSIFICATION:
        return variants.CLASSIFICATION
    return variants.HALF if second or model_type in SLOW else variants.FULL


def _run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every task's record, in the order of the tasks; each is written to FILE.lines as it comes."""
    tasks = _tasks(arguments)
    lines = _lines(arguments.json) if arguments.json else None
    done = {_key(record): record for record in _read_lines(lines)} if arguments.resume else {}
    missing = [task for task in tasks if _task_key(task) not in done]
    end = time.monotonic() + 60 * arguments.minutes
    with ThreadPoolExecutor(arguments.jobs) as pool, tqdm(total=len(missing), unit="model") as progress:
        futures = [pool.submit(_record, task, end) for task in missing]
        for future in as_completed(futures):
            record = future.result()
            done[_key(record)] = record
            if lines and record["status"] != table.NOT_RUN:
                with lines.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            progress.set_postfix_str(record["model"])
            progress.update()
    return [done[_task_key(task)] for task in tasks]


def _record(task: Task, end: float) -> dict[str, Any]:
    """The record of a task, or, once the time is up, one that says that it was not run."""
    if time.monotonic() < end:
        record = worker.census_of(*task)
    else:
        reason = "the time given to the census was up"
        record = {
            "model": task[0],
            "model_type": task[1],
            "attn": task[2],
            "status": table.NOT_RUN,
            "reason": reason,
        }
    record["inductor"] = task[3] is variants.INDUCTOR
    record["kind"] = classes.kind_of(task[0])
    return record


def _write(path: Path, data: dict[str, Any]) -> None:
    """One record a line, to compare censuses line by line; FILE.lines goes once FILE holds all of it."""
    records = ",\n".join(json.dumps(record) for record in data["records"])
    source = json.dumps({name: data[name] for name in data if name != "records"})
    path.write_text(f'{source[:-1]}, "records": [\n{records}\n]}}\n')
    if {_key(record) for record in _read_lines(_lines(path))} <= {_key(record) for record in data["records"]}:
        _lines(path).unlink(missing_ok=True)


def _lines(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".lines")


def _task_key(task: Task) -> tuple[Any, ...]:
    return (task[0], task[2], task[3] is variants.INDUCTOR)


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return (record["model"], record["attn"], record["inductor"])


def _read_lines(lines: Path | None) -> Iterator[dict[str, Any]]:
    if lines and lines.exists():
        yield from map(json.loads, lines.read_text().splitlines())


if __name__ == "__main__":
    sys.exit(main())
