"""The coverage census: does the backend keep every causal language model of transformers right?

Each class is built tiny with random weights, compiled in several ways and compared with the uncompiled model.
Nothing is downloaded. A few models by name, then everything, then the page in docs:

    python examples/coverage.py --models LlamaForCausalLM,GPT2LMHeadModel
    python examples/coverage.py --json docs/data/coverage.json --resume
    python examples/coverage.py --from docs/data/coverage.json --docs

The exit status is 1 if an output is wrong, if the backend fails where plain torch.compile does not, or if
fewer than 90 % of the models with plain causal attention are rewritten.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sa_compile.lab.census import plain, table, tiny, variants, worker
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
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    return parser


def _tasks(arguments: argparse.Namespace) -> list[Task]:
    names = tiny.model_names()
    chosen = arguments.models.split(",") if arguments.models else list(QUICK if arguments.quick else names)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise SystemExit(f"--models: {unknown[0]!r} is no causal language model class of this transformers")
    attns = (arguments.attn,) if arguments.attn else IMPLEMENTATIONS
    tasks = [
        (name, names[name], attn, _variants(name, attn, arguments.quick))
        for name in chosen
        for attn in attns
        if not arguments.quick or attn in QUICK.get(name, IMPLEMENTATIONS)
    ]
    if arguments.inductor:
        tasks += [
            (name, names[name], attn, variants.INDUCTOR)
            for name in POPULAR
            if name in names
            for attn in attns
        ]
    return tasks


def _variants(name: str, attn: str, quick: bool) -> tuple[variants.Variant, ...]:
    """Recurrent models hold no attention and unroll into graphs that take minutes: few variants will do."""
    if quick or plain.NOT_PLAIN.get(name) == plain.RECURRENT:
        return variants.QUICK
    return variants.HALF if attn == "eager" and tiny.offers_sdpa(name) else variants.FULL


def _run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every task's record, in the order of the tasks; each is written to FILE.lines as it comes."""
    tasks = _tasks(arguments)
    lines = _lines(arguments.json) if arguments.json else None
    done = {_key(record): record for record in _read_lines(lines)} if arguments.resume else {}
    missing = [task for task in tasks if _task_key(task) not in done]
    with ThreadPoolExecutor(arguments.jobs) as pool, tqdm(total=len(missing), unit="model") as progress:
        futures = [pool.submit(_record, task) for task in missing]
        for future in as_completed(futures):
            record = future.result()
            done[_key(record)] = record
            if lines:
                with lines.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            progress.set_postfix_str(record["model"])
            progress.update()
    return [done[_task_key(task)] for task in tasks]


def _record(task: Task) -> dict[str, Any]:
    record = worker.census_of(*task)
    record["inductor"] = task[3] is variants.INDUCTOR
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
