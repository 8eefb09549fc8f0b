"""What a census says, in numbers and as the page docs/coverage.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from sa_compile.lab.census.classes import CAUSAL, CLASSIFICATION, KINDS, MULTIMODAL
from sa_compile.lab.census.head_dims import kernels_of
from sa_compile.lab.census.plain import why_not_plain
from sa_compile.passes.conditions.kernels import MAX_HEAD_DIM

OUTCOMES = ("sampled", "exact", "kept")
REQUIRED_SHARE = 0.95
_LANGUAGE_MODELS = (CAUSAL, MULTIMODAL)
NOT_RUN = "not run"  # a record's status: the time given to the census was up
Record = dict[str, Any]
Result = dict[str, Any]


def is_failure(result: Result) -> bool:
    """A wrong output, a leftover score matrix, or a crash or hang, that plain torch.compile does not have."""
    if result["status"] == "ok":
        return bool(result.get("left"))
    return result["status"] in ("wrong", "crash", "timeout", "died") and result["plain"]["status"] == "ok"


def is_checked(result: Result) -> bool:
    """The call was made and compared: plain torch.compile runs it, so we must."""
    return result["status"] == "ok" or is_failure(result)


def sites(record: Record) -> Iterable[dict[str, Any]]:
    """Every kind of attention found in the language model, in the checked variants, with its count."""
    for result in record.get("variants", []):
        if is_checked(result):
            yield from (site for site in result.get("sites", []) if site.get("part") != "tower")


def _kind(record: Record) -> str:
    return record.get("kind", CAUSAL)


def outcomes(record: Record) -> Counter[str]:
    """Sites by outcome, over the checked variants."""
    counts: Counter[str] = Counter()
    for site in sites(record):
        counts[site["outcome"]] += site["count"]
    return counts


@dataclass(frozen=True)
class Totals:
    """The census in numbers; ``plain`` and ``rewritten`` count models (classes), not records.

    Both are of language models, alone or beside a tower; ``classifiers`` and ``classifiers_rewritten`` are
    the same of sequence classifiers. ``as_run``: of ``plain``, those rewritten at every site in the
    implementation of attention that a class runs unless told otherwise, SDPA where it has that. ``shown``:
    classes that were compared with an image or a sound.
    """

    classes: int
    records: int
    not_run: int
    checked: int
    sites: Counter[str]
    failures: list[str]
    worst_error: float
    least_reach: float
    plain: list[str]
    rewritten: list[str]
    as_run: list[str]
    classifiers: list[str]
    classifiers_rewritten: list[str]
    shown: list[str]

    @property
    def share(self) -> float:
        """Of the models with plain causal attention: the share of which every site was sampled or exact."""
        return len(self.rewritten) / len(self.plain) if self.plain else 1.0

    @property
    def share_as_run(self) -> float:
        """The same of attention as it runs by default."""
        return len(self.as_run) / len(self.plain) if self.plain else 1.0

    @property
    def all_rewritten(self) -> set[str]:
        """Language models and classifiers of which every site was sampled or exact."""
        return {*self.rewritten, *self.classifiers_rewritten}

    @property
    def passed(self) -> bool:
        """No failure, and enough of the plain causal models rewritten."""
        return not self.failures and self.share >= REQUIRED_SHARE


def totals(records: Sequence[Record]) -> Totals:
    """Count a census."""
    checked = [
        (record, result) for record in records for result in record.get("variants", []) if is_checked(result)
    ]
    by_outcome: Counter[str] = Counter()
    for record in records:
        by_outcome += outcomes(record)
    # What is measured as bidirectional in one implementation is not plain in the other.
    other = {record["model"] for record, _ in checked if why_not_plain(record) is not None}
    plain = {record["model"]: _kind(record) for record, _ in checked if record["model"] not in other}
    plain_ones = sorted(name for name in plain if plain[name] in _LANGUAGE_MODELS)
    classifiers = sorted(name for name in plain if plain[name] == CLASSIFICATION)
    measured = [record for record in records if any(map(is_checked, record.get("variants", [])))]
    untouched, untouched_as_run = _untouched(measured), _untouched(_as_run(measured))
    return Totals(
        classes=len({record["model"] for record in records if record["status"] != NOT_RUN}),
        records=sum(record["status"] == "run" for record in records),
        not_run=sum(record["status"] == NOT_RUN for record in records),
        checked=len(checked),
        sites=by_outcome,
        failures=[
            f"{record['model']} ({record['attn']}, {result['variant']}): {describe_failure(result)}"
            for record, result in checked
            if is_failure(result)
        ],
        worst_error=max((result["error"] for _, result in checked if "error" in result), default=0.0),
        least_reach=min((record["reach"] for record in measured if "reach" in record), default=0.0),
        plain=plain_ones,
        rewritten=[model for model in plain_ones if model not in untouched],
        as_run=[model for model in plain_ones if model not in untouched_as_run],
        classifiers=classifiers,
        classifiers_rewritten=[model for model in classifiers if model not in untouched],
        shown=sorted({record["model"] for record, result in checked if result["variant"].startswith(_SHOWN)}),
    )


def _untouched(records: Sequence[Record]) -> set[str]:
    """The models of which a record has a site that was kept, or no site."""
    return {record["model"] for record in records if outcomes(record)["kept"] or not outcomes(record)}


def _as_run(records: Sequence[Record]) -> list[Record]:
    """Of each model the record of SDPA, or of eager attention where it has no other."""
    with_sdpa = {record["model"] for record in records if record["attn"] == "sdpa"}
    return [record for record in records if record["attn"] == "sdpa" or record["model"] not in with_sdpa]


_SHOWN = "image or sound"


def describe_failure(result: Result) -> str:
    """What went wrong, in a few words."""
    if result["status"] == "ok":
        return f"a score matrix is left in the graph: {', '.join(result['left'][:3])}"
    if result["status"] == "wrong":
        return f"wrong output, relative error {result['error']:.1e}"
    return f"{result['status']}: {result['reason']}"


def markdown(census: dict[str, Any]) -> str:
    """The page docs/coverage.md for a census: its records, and its command, commit and versions."""
    records = sorted(
        census["records"], key=lambda record: (record["model"].lower(), record["attn"] != "sdpa")
    )
    default = [record for record in records if not record.get("inductor")]
    inductor = [record for record in records if record.get("inductor")]
    parts = [
        _INTRODUCTION.format(
            command=census["command"],
            commit=census["revision"],
            widest=MAX_HEAD_DIM,
            versions=", ".join(f"{name} {version}" for name, version in census["versions"].items()),
        ),
        summary(totals(default)),
        *(
            f"## {_TITLES[kind]}\n\n" + _models([record for record in default if _kind(record) == kind])
            for kind in KINDS
        ),
        "## Reasons for keeping an attention as it is\n\n" + _reasons(default),
    ]
    if inductor:
        parts.append("## Through Inductor\n\n" + _models(inductor))
    parts.append("## Models whose attention is not plain causal\n\n" + _not_plain(default))
    parts.append("## Not measured\n\n" + _not_measured(default))
    return "\n\n".join(parts) + "\n"


_TITLES = {
    CAUSAL: "Causal language models",
    MULTIMODAL: "With images or sounds",
    CLASSIFICATION: "Sequence classifiers",
}
_INTRODUCTION = """# Coverage

Generated by `{command}` at commit `{commit}` with {versions}; do not edit.

Every causal language model of transformers, every model that takes images or sounds with text, and every
sequence classifier is built tiny with random weights (fp32; 2 layers, 4 heads, the head dims of its default
config), compiled with `backend="sampleattn"` and compared with the uncompiled model. The method is the
default, `adaptive`, with `peak = 0` (before there was a peak: `tau = 0`), which keeps every block, so that
the result must be that of full attention. The error is `||difference|| / ||logits||` over all positions,
padded ones too, the worst of the variants; the limit is 1e-4. Blocks of 16 and `min_seq_len` 32 let 72 tokens
be sampled.

Variants: a batch with a 2-D mask (left padding) and a cache, and a second chunk on that cache. Models with a
tower: an image or a sound, with the mask and the token types of its processor, or text alone where none was
found that the tiny model takes (column *input*). Classifiers: with a mask. The eager spelling of a class
that also has SDPA, and models whose layers unroll, take the first variant only. The rewritten graphs run as
they are (`inner="eager"`). *Sites* are attentions of the language model, summed over the variants; those of
towers are bidirectional and stay.

*Head dims* are those of query and key, and of value where they differ. *Kernels* says what computes them in
bf16 on an H200, attention / selection if these differ: sm90 (written for Hopper), triton, or none (above
{widest}: not sampled on any device).

*Plain causal* is softmax(scale q k^T + mask) v, or that with one sink a head, under a mask of positions and
padding. Whether a model is causal is measured: nothing before a token changes with it, in either
implementation. A table below has the models that are not plain, and why."""


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    if not rows:
        return "None."
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def summary(total: Totals) -> str:
    """The totals as a table, and the failures."""
    rows = [
        ("model classes", total.classes),
        ("class and implementation pairs that run", total.records),
        ("pairs that the time given to the census did not reach", total.not_run),
        ("compiled variants compared", total.checked),
        *((f"sites {outcome}", total.sites[outcome]) for outcome in OUTCOMES),
        ("classes compared with an image or a sound", len(total.shown)),
        ("worst relative error", f"{total.worst_error:.1e}"),
        ("least change of the logits by a token eight places before", f"{total.least_reach:.1e}"),
        ("wrong outputs, crashes, leftover score matrices", len(total.failures)),
        ("language models, alone or with a tower, with plain causal attention", len(total.plain)),
        (
            "of these, rewritten at every site, as SDPA and as eager",
            f"{len(total.rewritten)} ({total.share:.1%})",
        ),
        (
            "of these, rewritten at every site as they run by default",
            f"{len(total.as_run)} ({total.share_as_run:.1%})",
        ),
        ("sequence classifiers with plain causal attention", len(total.classifiers)),
        ("of these, rewritten at every site", len(total.classifiers_rewritten)),
    ]
    text = _table([(name, str(number)) for name, number in rows], ("", "count"))
    left = [model for model in (*total.plain, *total.classifiers) if model not in total.all_rewritten]
    if left:
        text += "\n\nPlain causal, but kept at some site: " + ", ".join(left) + "."
    if total.failures:
        text += "\n\nFailures:\n\n" + "\n".join(f"* {failure}" for failure in total.failures)
    return text


def _models(records: Sequence[Record]) -> str:
    rows = []
    shown = any(_kind(record) == MULTIMODAL for record in records)
    for record in records:
        checked = [result for result in record.get("variants", []) if is_checked(result)]
        if not checked:
            continue
        counts = outcomes(record)
        errors = [result["error"] for result in checked if "error" in result]
        reasons = sorted({site["reason"] for site in sites(record) if site["outcome"] == "kept"})
        rows.append(
            (
                record["model"],
                record["attn"],
                *([record.get("media") or "text"] if shown else []),
                *_head_dims(record),
                len(checked),
                sum(counts.values()),
                *(counts[outcome] for outcome in OUTCOMES),
                "; ".join(_cell(reason) for reason in reasons),
                f"{max(errors, default=float('nan')):.0e}",
            )
        )
    return _table(
        rows,
        (
            *(
                "model",
                "attention",
                *(["input"] if shown else []),
                "head dims",
                "kernels",
                "variants",
                "sites",
            ),
            *(*OUTCOMES, "why kept", "error"),
        ),
    )


def _head_dims(record: Record) -> tuple[str, str]:
    """Head dims of the language model, and the kernels that take them; of attentions that are understood."""
    found = {(site.get("head_dim"), site.get("value_head_dim")) for site in sites(record)}
    dims = sorted((d, v) for d, v in found if isinstance(d, int) and isinstance(v, int))
    names = [str(d) if d == v else f"{d}/{v}" for d, v in dims]
    return ", ".join(names), ", ".join(dict.fromkeys(kernels_of(d, v) for d, v in dims))


def _cell(text: str, limit: int = 90) -> str:
    """Text that fits a Markdown cell."""
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _reasons(records: Sequence[Record]) -> str:
    counts: Counter[str] = Counter()
    models: dict[str, set[str]] = {}
    for record in records:
        for site in sites(record):
            if site["outcome"] == "kept":
                counts[site["reason"]] += site["count"]
                models.setdefault(site["reason"], set()).add(record["model"])
    rows = [
        (_cell(reason, 120), count, len(models[reason]), _cell(", ".join(sorted(models[reason])), 160))
        for reason, count in counts.most_common()
    ]
    return _table(rows, ("reason", "sites", "models", "which"))


def _not_plain(records: Sequence[Record]) -> str:
    reasons: dict[str, list[str]] = {}
    found: dict[str, str | None] = {}
    for record in records:
        if record["status"] == "run":
            found[record["model"]] = found.get(record["model"]) or why_not_plain(record)
    for name, why in found.items():
        if why is not None:
            reasons.setdefault(why, []).append(name)
    return _table([(why, ", ".join(names)) for why, names in sorted(reasons.items())], ("why", "models"))


def _not_measured(records: Sequence[Record]) -> str:
    rows = []
    not_run: dict[str, list[str]] = {}
    for record in records:
        if record["status"] == NOT_RUN:
            not_run.setdefault(f"{_kind(record)}, {record['attn']}", []).append(record["model"])
        elif record["status"] != "run":
            rows.append(
                (record["model"], record["attn"], "all", record["status"], _cell(record["reason"], 140))
            )
        for result in record.get("variants", []):
            if not is_checked(result):
                status, reason = _why_not_checked(result)
                rows.append((record["model"], record["attn"], result["variant"], status, _cell(reason, 140)))
    table = _table(_merge_variants(rows), ("model", "attention", "variants", "", "reason"))
    return table + "".join(
        f"\n\nNot reached in the time given ({kind}, {len(names)}): {', '.join(names)}."
        for kind, names in not_run.items()
    )


def _why_not_checked(result: Result) -> tuple[str, str]:
    if result["status"] in ("not applicable", "uncompiled fails"):
        return result["status"], result["reason"]
    plain = result["plain"]
    return f"plain torch.compile: {plain['status']}", plain.get("reason") or f"error {plain.get('error'):.1e}"


def _merge_variants(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Variants that share all the rest share a row."""
    merged: dict[tuple[str, ...], list[str]] = {}
    for model, attn, variant, status, reason in rows:
        merged.setdefault((model, attn, status, reason), []).append(variant)
    return [(m, a, "<br>".join(variants), s, r) for (m, a, s, r), variants in merged.items()]
