"""The harness: every rule on the same documents, journalled so that a run can be resumed."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from sa_compile.lab.eval.attention import sparse_prefill
from sa_compile.lab.eval.plan import FACTS, Plan, Unit
from sa_compile.lab.eval.rules import RULES, parse_rule, settings_of
from sa_compile.lab.eval.scoring import Score, greedy_tokens, score_document
from sa_compile.lab.eval.supply import Documents
from sa_compile.lab.eval.tasks.documents import Document
from sa_compile.provenance import provenance

FORMAT = 1
_HEADS_OF = 8  # documents whose density and CRA are journalled per head


class Journal:
    """JSON lines beside the result: a first line with the documents and all rules' default settings, which
    rules' strings leave out, then one line a rule and document."""

    def __init__(self, path: Path, plan: Plan, *, resume: bool) -> None:
        """ValueError if ``path`` holds a journal and ``resume`` is off, or of other documents or defaults."""
        self.path = path
        self.lines: dict[tuple[str, str, int, int], dict[str, Any]] = {}
        header = {
            "format": FORMAT,
            "documents": plan.documents("block_q", "block_k", "text_positions"),
            "defaults": {name: settings_of(name) for name in RULES},
        }
        if path.exists():
            if not resume:
                raise ValueError(f"{path} exists: pass --resume to go on with it, or remove it")
            self._read(header)
        else:
            path.write_text(json.dumps(header) + "\n")

    def _read(self, header: dict[str, Any]) -> None:
        first, *rest = self.path.read_text().splitlines()
        if json.loads(first) != header:
            raise ValueError(
                f"{self.path} was written for other documents, or with other default settings of rules: "
                f"{first}; now: {json.dumps(header)}"
            )
        for text in rest:
            line = json.loads(text)
            self.lines[line["rule"], line["kind"], line["length"], line["index"]] = line

    def add(self, line: dict[str, Any]) -> None:
        self.lines[line["rule"], line["kind"], line["length"], line["index"]] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def run(
    plan: Plan,
    model: nn.Module,
    documents: Documents,
    journal: Journal,
    *,
    minutes: float = float("inf"),
    revision: str | None = None,
) -> dict[str, Any]:
    """Score every rule on every document that the journal lacks; returns the whole result as plain data.

    ``model`` is a Hugging Face causal LM, ``documents`` are the plan's. Stops after ``minutes``; what is
    missing then is left out of the result. ``revision``: the code's commit where git cannot tell.
    """
    begin = time.monotonic()
    with tqdm(total=len(plan.units()) * len(plan.rules), desc="eval", unit="document", mininterval=2) as bar:
        for kind, length, index in plan.units():
            for rule in plan.rules:
                bar.update()
                if (rule, kind, length, index) in journal.lines:
                    continue
                if time.monotonic() - begin > 60 * minutes:
                    continue
                journal.add(_measure(plan, model, documents, rule, (kind, length, index)))
    return {
        "format": FORMAT,
        "plan": dataclasses.asdict(plan),
        "settings": {rule: settings_of(rule) for rule in plan.rules},
        "provenance": _source(model, revision),
        "haystack": documents.digests({kind for _, kind, _, _ in journal.lines}),
        "questions": documents.questions({(n, i) for _, kind, n, i in journal.lines if kind == FACTS}),
        "scores": list(journal.lines.values()),
    }


def _measure(plan: Plan, model: nn.Module, documents: Documents, rule: str, unit: Unit) -> dict[str, Any]:
    """The journal's line of one rule and document."""
    kind, length, index = unit
    start = time.monotonic()
    document = documents.get(kind, length, index)
    blocks: dict[str, Any] = {"block_q": plan.block_q, "block_k": plan.block_k}
    scored = {"text_positions": plan.text_positions, **blocks}
    settings = {"cra_chunks": plan.cra_chunks, "cra_rows": plan.cra_rows, **scored}
    settings["theorem"] = kind == FACTS and index < plan.theorem
    settings["sparsity"] = kind == FACTS and index < plan.sparsity and rule == "full"
    reference = documents.references.get(unit)
    if reference is None and rule != "full":
        # Full attention's line is in the journal, its predictions are not.
        reference = score_document(model, document, parse_rule("full"), **scored).states
    score = score_document(model, document, parse_rule(rule), reference, **settings)
    if rule == "full" and not math.isnan(score.text_nll):
        score = dataclasses.replace(score, kl=0.0, agree=1.0)
    documents.refer(unit, score.states if rule == "full" else reference)
    line = {"rule": rule, "kind": kind, "length": length, "index": index, **_line(score, index)}
    line["seconds"] = round(time.monotonic() - start, 3)
    if kind == FACTS and index < plan.greedy:
        line["greedy"] = _greedy(model, document, rule, blocks)
    return line


def _line(score: Score, index: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "right": score.right,
        "nll": round(score.text_nll, 5),
        "density": round(_mean(score.density), 5),
        "cra": _or_none(_mean(score.cra)),
        "agree": _or_none(score.agree),
        "kl": _or_none(score.kl),
    }
    if index < _HEADS_OF:
        line["heads"] = {"density": score.density, "cra": score.cra}
    if score.exact:
        line["exact"] = score.exact
    return line


def _or_none(value: float) -> float | None:
    """Rounded; None for what was not measured (without text, or full attention against itself)."""
    return None if math.isnan(value) else round(value, 6)


def _mean(layers: list[list[float]]) -> float:
    flat = [value for layer in layers for value in layer]
    return sum(flat) / len(flat) if flat else float("nan")


def _greedy(model: nn.Module, document: Document, rule: str, settings: dict[str, Any]) -> str:
    """1 if greedy decoding answers the document's first question at the end; empty without one."""
    question = next((q for q in document.questions if q.place == "end"), None)
    if question is None:
        return ""
    expected = document.tokens[question.start : question.stop].tolist()
    prompt = document.tokens[: question.start].tolist()
    return "01"[greedy_tokens(model, prompt, parse_rule(rule), len(expected), **settings) == expected]


def _source(model: nn.Module, revision: str | None) -> dict[str, Any]:
    """Where a result comes from, the model's size and dtype included."""
    parameter = next(model.parameters())
    return {
        **provenance(parameter.device, revision=revision),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def pictures(plan: Plan, model: nn.Module, documents: Documents, length: int) -> Iterator[dict[str, Any]]:
    """Kept blocks of three heads (of the first, a middle and the last layer that rules run in) on the first
    document of ``length`` of the shard, one entry a rule and head.

    A picture is a list of int lists: the block_mask words of each query block.
    """
    first = next(unit for unit in plan.units() if unit[:2] == (FACTS, length))
    document = documents.get(*first)
    tokens = torch.from_numpy(document.tokens).to(next(model.parameters()).device)
    for rule in plan.rules:
        settings = {"block_q": plan.block_q, "block_k": plan.block_k}
        with torch.no_grad(), sparse_prefill(model, parse_rule(rule), **settings) as prefill:
            model(input_ids=tokens[None], use_cache=False, logits_to_keep=1)
        layers, heads = len(prefill.masks), prefill.masks[0].shape[1]
        for layer, head in ((0, 0), (layers // 2, heads // 2), (layers - 1, heads - 1)):
            words = prefill.masks[layer][0, head].tolist()
            where = {"layer": prefill.layers[layer], "head": head}
            yield {"rule": rule, "length": length, **where, "words": words}
