"""Published benchmarks under selection rules: greedy decoding behind a sparse prefill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from sa_compile.lab.eval.attention import sparse_prefill
from sa_compile.lab.eval.rules import parse_rule, settings_of
from sa_compile.lab.eval.statistics import mean_interval
from sa_compile.lab.eval.tasks.published import Example


def prompt_tokens(tokenizer: Any, prompt: str, most: int) -> list[int]:
    """Token ids of a prompt; one longer than ``most`` loses its middle, as LongBench and InfiniteBench do."""
    ids = tokenizer(prompt)["input_ids"]
    return ids if len(ids) <= most else ids[: most // 2] + ids[len(ids) - (most - most // 2) :]


@torch.no_grad()
def run_benchmark(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    rules: Sequence[str],
    *,
    max_length: int,
    journal: Path | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """One line a rule (its settings) and example of a task: tokens, prediction, score, density.

    Prompts keep at most ``max_length`` tokens. Lines that ``journal`` (JSON lines) holds are taken from
    it, new ones are added to it; ValueError if a rule had other settings there. ``settings`` go to
    :func:`~sa_compile.lab.eval.attention.sparse_prefill`.
    """
    done: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    if journal is not None and journal.exists():
        for text in journal.read_text().splitlines():
            line = json.loads(text)
            _check_settings(journal, line)
            done[line["rule"], line["benchmark"], line["task"], line["index"]] = line
    lines = []
    device = next(model.parameters()).device
    specs = list(dict.fromkeys(parse_rule(rule).spec for rule in ("full", *rules)))
    for index, example in enumerate(tqdm(examples, desc="benchmark", unit="example")):
        for rule in specs:
            key = (rule, example.benchmark, example.task, index)
            if key not in done:
                ids = torch.tensor([prompt_tokens(tokenizer, example.prompt, max_length)], device=device)
                with sparse_prefill(model, parse_rule(rule), **settings) as prefill:
                    out = model.generate(  # type: ignore[operator]
                        ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=example.new_tokens,
                        do_sample=False,
                    )
                prediction = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
                done[key] = {
                    "rule": rule,
                    "settings": settings_of(rule),
                    "benchmark": example.benchmark,
                    "task": example.task,
                    "index": index,
                    "tokens": ids.shape[1],
                    "prediction": prediction,
                    "score": example.score(prediction),
                    "density": float(torch.stack(prefill.densities).mean()),
                }
                if journal is not None:
                    with journal.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
            lines.append(done[key])
    return lines


def _check_settings(journal: Path, line: dict[str, Any]) -> None:
    """A rule's string leaves defaults out, and these may have changed since ``line`` was written."""
    then, now = line.get("settings"), settings_of(line["rule"])
    if then != now:
        raise ValueError(
            f"{journal} was written with other settings of {line['rule']!r}: {then}; now: {now}. "
            "Give another file, or remove it"
        )


def benchmark_table(lines: Sequence[dict[str, Any]]) -> str:
    """Mean score (with the half-width of its 95 % interval), density and count, by task and rule."""
    rows = []
    for task in dict.fromkeys((line["benchmark"], line["task"]) for line in lines):
        for rule in dict.fromkeys(line["rule"] for line in lines):
            own = [x for x in lines if (x["benchmark"], x["task"]) == task and x["rule"] == rule]
            mean, half = mean_interval(np.array([line["score"] for line in own]))
            density = np.mean([line["density"] for line in own])
            rows.append(["/".join(task), rule, f"{mean:.3f} ± {half:.3f}", f"{density:.3f}", len(own)])
    headers = ["task", "rule", "score", "density", "examples"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
