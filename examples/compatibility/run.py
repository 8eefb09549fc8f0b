"""The compatibility table: what was tried with the backend, what became of it, and whether it was right.

    python examples/compatibility/run.py --only autocast
    python examples/compatibility/run.py --json docs/data/compatibility.json --docs
    python examples/compatibility/run.py --from docs/data/compatibility.json --docs

Tiny models with random weights; selection keeps every block, so results must equal the uncompiled model's.
What is not installed is skipped, and said so: the table in docs comes from a run that skipped nothing but
what needs a GPU. The exit status is 1 if a result is wrong or a trial fails.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from tabulate import tabulate
from trial import TRIALS, Trial

from sa_compile.provenance import provenance

for _module in ("trials", "generating", "distributed"):  # in the order of the table
    importlib.import_module(_module)

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
FUZZ = ROOT / "benchmarks" / "results" / "cpu_fuzz_graphs.json"
PACKAGES = ("peft", "torchao", "accelerate", "optimum-quanto")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or read the trials; print them, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", help="words: trials whose subject or description has one")
    parser.add_argument("--models", nargs="*", help="names of models, all by default")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--from", dest="source", type=Path, help="read the records instead of running")
    parser.add_argument("--docs", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    given = parser.parse_args(arguments)
    data = json.loads(given.source.read_text()) if given.source else _run(given)
    if given.json:
        records = ",\n".join(json.dumps(record) for record in data["records"])
        head = json.dumps({name: data[name] for name in data if name != "records"})
        given.json.write_text(f'{head[:-1]}, "records": [\n{records}\n]}}\n')
    if given.docs:
        PAGE.write_text(page(data))
    bad = [record for record in data["records"] if record["status"] in ("wrong", "fails")]
    print(f"{len(data['records'])} trials, {len(bad)} wrong or failing")
    return 1 if bad else 0


def _run(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    records = []
    for trial in TRIALS:
        if given.only and not any(word in f"{trial.subject} | {trial.how}" for word in given.only):
            continue
        for model in trial.models:
            if not given.models or model in given.models:
                records.append(_record(trial, model))
                print(_line(records[-1]), flush=True)
    command = "python examples/compatibility/run.py"
    origin = provenance(command=command)
    installed = [package for package in PACKAGES if _version(package)]
    origin["versions"] |= {package: _version(package) for package in installed}
    return {**origin, "records": records}


def _record(trial: Trial, model: str) -> dict[str, Any]:
    record: dict[str, Any] = {"subject": trial.subject, "how": trial.how, "model": model}
    missing = [package for package in trial.requires if not _installed(package)]
    if missing:
        return record | {"status": "SKIPPED", "note": f"not here: {', '.join(missing)}"}
    began = time.perf_counter()
    try:
        measured = trial.run(model)
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        causes = [line for line in text if "Error" in line or "raised" in line] or text
        note = f"{type(error).__name__}: {text[0]} {causes[-1] if causes[-1] != text[0] else ''}"
        return record | {"status": "fails", "note": note.strip()[:300]}
    right = measured.error <= trial.allowed
    return record | {
        "status": "right" if right else "wrong",
        "outcomes": measured.outcomes,
        "reasons": measured.reasons,
        "error": measured.error if math.isfinite(measured.error) else str(measured.error),
        "allowed": trial.allowed,
        "note": measured.note,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _line(record: dict[str, Any]) -> str:
    parts = (record["subject"], record["how"], record["model"], record["status"], record.get("error", ""))
    return " | ".join(
        map(str, (*parts, record.get("outcomes", ""), record.get("reasons", ""), record["note"]))
    )


def page(data: dict[str, Any]) -> str:
    """docs/compatibility.md."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in data["records"]:
        groups.setdefault((record["subject"], record["how"]), []).append(record)
    rows = [_row(subject, how, records) for (subject, how), records in groups.items()]
    headers = ("what", "how", "models", "outcome", "largest error", "why not sampled, and notes")
    return _PAGE.format(
        command=data["command"],
        versions=versions,
        device=data["device"],
        models=", ".join(dict.fromkeys(record["model"] for record in data["records"])),
        fuzz=_fuzz(json.loads(FUZZ.read_text())),
        table=tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        **{status: sum(r["status"] == status for r in data["records"]) for status in _STATUSES},
    )


_STATUSES = ("right", "wrong", "fails", "SKIPPED")
_PAGE = """# Compatibility

Generated by `{command} --json docs/data/compatibility.json --docs` on {device}: {versions}.

Tiny models with random weights (in this run: {models}), two layers and prompts of 96 tokens,
`min_seq_len=32`, `peak=0` (before there was a peak: `tau=0`): every block is kept, so that sampled results
must equal those of the same model uncompiled. *Outcome* counts the attentions of all compiled graphs
(prefill, decoding, other lengths). *Largest error* is relative to the largest value, of logits, tokens or, of
a training step, of the loss and all gradients.

{right} trials right, {wrong} wrong, {fails} failing, {SKIPPED} skipped.

{table}

## Random graphs

{fuzz}
"""

_FUZZ = """`python tests/fuzz/graphs.py --count {count} --seed 0` draws small attentions
(spelling, mask, dtype, padding, offset, in-place writes, functions named like torch's, checkpoint, autocast,
vmap) and compares each, compiled, with the same function uncompiled, for two sets of values. Of {count}
([counts](../{path}), commit {revision:.7})
{right} are right, {wrong} wrong, and {crash} fail where plain `torch.compile` does not; of their attentions
{sampled} are sampled, {exact} exact and {kept} kept. The rest has no verdict: {refused} that raise an error
uncompiled (*eager refuses*), {fails} that plain `torch.compile`, without our passes, fails on
(*torch.compile refuses*), and {differs} that it, too, computes otherwise (*torch.compile differs*)."""


def _fuzz(data: dict[str, Any]) -> str:
    """What the committed run of random graphs came to."""
    statuses = {"wrong": 0, "crash": 0, **data["statuses"]}
    return _FUZZ.format(
        count=sum(statuses.values()),
        path=FUZZ.relative_to(ROOT),
        revision=data["revision"],
        refused=statuses["eager refuses"],
        fails=statuses["torch.compile refuses"],
        differs=statuses["torch.compile differs"],
        **{status: statuses[status] for status in ("right", "wrong", "crash")},
        **data["outcomes"],
    )


def _row(subject: str, how: str, records: list[dict[str, Any]]) -> tuple[str, ...]:
    """Models with the same outcomes share a line of the cell."""
    by_outcome: dict[str, list[str]] = {}
    for record in records:
        by_outcome.setdefault(_outcome(record), []).append(record["model"])
    everywhere = len(by_outcome) == 1
    outcome = "; ".join(
        text if everywhere else f"{', '.join(models)}: {text}" for text, models in by_outcome.items()
    )
    errors = [record["error"] for record in records if "error" in record]
    error = max(map(float, errors), default=math.nan)
    reasons = {reason for record in records for reason in record.get("reasons", ())}
    notes = {record["note"] for record in records if record["note"]}
    models = ", ".join(record["model"] for record in records)
    return (
        *(subject, how.replace("|", "\\|"), models, outcome, f"{error:.1e}" if errors else ""),
        "; ".join((*sorted(reasons), *sorted(notes))).replace("|", "\\|"),
    )


def _outcome(record: dict[str, Any]) -> str:
    if record["status"] in ("fails", "SKIPPED"):
        return record["status"]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in record["outcomes"].items())
    return ("**wrong** " if record["status"] == "wrong" else "") + (counts or "no attention found")


def _installed(package: str) -> bool:
    if package == "a GPU":
        return torch.cuda.is_available()
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
