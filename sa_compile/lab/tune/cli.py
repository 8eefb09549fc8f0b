"""``python -m sa_compile tune``: find settings for a model, as a profile; and ``rule-costs``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sa_compile.lab.eval.cli import add_stored, documents_of, load_model, rules_of
from sa_compile.lab.tokens import length_from


def add_commands(commands: Any) -> None:
    """Add ``tune`` and ``rule-costs``; nothing heavy is imported before it runs."""
    parser = commands.add_parser(
        "tune", help="find the fastest options for a model that keep a bound on accuracy, as a profile"
    )
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument(
        "--lengths",
        type=length_from,
        nargs="+",
        required=True,
        metavar="TOKENS",
        help="lengths to tune at; a setting applies from its length up to the next, the last without end",
    )
    parser.add_argument(
        "--bound",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="accuracy (relative, on tasks that full attention solves, in the worst place); in the worst "
        "kind of text: nll (its change, nats a token), kl (from full attention's next tokens, nats), "
        "agreement (share of equal most likely tokens); default: nll=0.005 kl=0.01, and accuracy=0.99 where "
        "the model solves a task",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the profile to write")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="methods to try (default: all)")
    parser.add_argument(
        "--blocks", nargs="+", metavar="QxK", help="block sizes to try (default: 128x128 128x64)"
    )
    parser.add_argument("--count", type=int, default=4, help="documents with questions a length (default 4)")
    parser.add_argument("--texts", type=int, default=0, help="documents of plain text a length and domain")
    parser.add_argument("--screen", type=int, default=1, help="documents that every setting sees (default 1)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: those the example model knows")
    parser.add_argument(
        "--haystack", nargs="+", default=[], metavar="FILE", help="your own text files as documents"
    )
    parser.add_argument(
        "--corpus", default="", metavar="DIR", help="folder that fetch-texts filled, as documents"
    )
    add_stored(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted search")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--revision", help="the code's commit, where git cannot tell")
    parser.set_defaults(run=_tune)

    rules = commands.add_parser(
        "rule-costs", help="time the selection of evaluation rules, for eval-report --costs"
    )
    rules.add_argument("--model", required=True, help="model folder")
    rules.add_argument("--rules", nargs="+", required=True, metavar="RULE", help="as eval takes them")
    rules.add_argument("--lengths", type=length_from, nargs="+", required=True, metavar="TOKENS")
    rules.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the times go")
    rules.add_argument("--device", help="default: cuda if there is one")
    rules.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU")
    rules.add_argument("--revision", help="the code's commit, where git cannot tell")
    rules.set_defaults(run=_rule_costs)


def _tune(arguments: argparse.Namespace) -> int:
    from sa_compile.fingerprint import fingerprint
    from sa_compile.lab.tune import search, write
    from sa_compile.lab.tune.bound import parse_bound
    from sa_compile.provenance import provenance

    bound = parse_bound(arguments.bound)
    tried = _candidates(arguments.methods, arguments.blocks)
    plan = _plan(arguments)
    model, tokenizer = load_model(arguments.model, arguments.device, arguments.dtype)
    sites = search.sampled_sites(model)
    model_print = fingerprint(model, sites)
    request = search.Request(plan, tried, bound, arguments.screen, arguments.out, arguments.resume)
    device = next(model.parameters()).device
    documents = documents_of(arguments, plan, tokenizer)
    choices = []
    for choice in search.search(request, model, documents, model_print.attentions):
        choices.append(choice)
        source = provenance(device, revision=arguments.revision)
        profile = write.profile_of(choices, model_print, _calibration(plan), source)
        arguments.out.write_text(json.dumps(profile, indent=1) + "\n")
    print(write.summary(choices))
    print(f"Wrote {arguments.out}: torch.compile(model, backend='sampleattn', options={{'profile': FILE}}).")
    return 0


def _rule_costs(arguments: argparse.Namespace) -> int:
    from tabulate import tabulate

    from sa_compile.fingerprint import fingerprint
    from sa_compile.lab.tune.rule_costs import measure_rules
    from sa_compile.lab.tune.search import sampled_sites
    from sa_compile.provenance import provenance

    names = rules_of(arguments.rules)
    model, _ = load_model(arguments.model, arguments.device, arguments.dtype)
    kinds = fingerprint(model, sampled_sites(model)).attentions
    device = next(model.parameters()).device
    costs = [measure_rules(length, kinds, names, device) for length in arguments.lengths]
    source = provenance(device, revision=arguments.revision)
    arguments.json.write_text(json.dumps({"provenance": source, "costs": costs}, indent=1) + "\n")
    rows = [
        [cost["length"], rule, cost["rule_ms"].get(rule, cost["errors"].get(rule))]
        for cost in costs
        for rule in (*cost["rule_ms"], *cost["errors"])
    ]
    print(tabulate(rows, ["tokens", "rule", "ms"], tablefmt="github", floatfmt=".3f"))
    return 0


def _plan(arguments: argparse.Namespace) -> Any:
    from sa_compile.lab.eval.plan import DEFAULT_TASKS, Plan

    for name, least in (("count", 0), ("texts", 0), ("screen", 1)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    if not arguments.count and not arguments.texts:
        raise ValueError("--count and --texts are both 0: there is nothing to measure accuracy on")
    kinds: dict[str, Any] = {"domains": ("prose",)} if arguments.haystack else {}
    return Plan(
        model=arguments.model,
        rules=(),
        lengths=tuple(arguments.lengths),
        tasks=tuple(arguments.tasks or DEFAULT_TASKS),
        count=arguments.count,
        texts=arguments.texts,
        seed=arguments.seed,
        haystack=tuple(arguments.haystack),
        corpus=arguments.corpus,
        **kinds,
    )


def _candidates(methods: list[str] | None, blocks: list[str] | None) -> tuple[Any, ...]:
    from sa_compile.lab.tune.space import BLOCKS, FAMILIES, candidates

    known = {family.method: family for family in FAMILIES}
    for method in methods or ():
        if method not in known:
            raise ValueError(f"--methods: unknown method {method!r}; known: {', '.join(known)}")
    chosen = [known[method] for method in methods] if methods else list(FAMILIES)
    return tuple(candidates(chosen, [_sizes(text) for text in blocks] if blocks else BLOCKS))


def _sizes(text: str) -> tuple[int, int]:
    rows, _, keys = text.partition("x")
    if not rows.isdigit() or not keys.isdigit():
        raise ValueError(f"--blocks takes sizes such as 128x64, got {text!r}")
    return int(rows), int(keys)


def _calibration(plan: Any) -> dict[str, Any]:
    names = ("split", "seed", "tasks", "places", "count", "texts", "domains", "haystack", "corpus")
    return {name: getattr(plan, name) for name in names}
