"""RULER, LongBench, BABILong and InfiniteBench in their published formats, with their prompts and
metrics.

Rows come from a local JSONL file (or a folder of them) or, by name, through ``datasets``. Prompts go to
the model as plain text, without a chat template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import metrics, templates
from .metrics import Metric, Reference


@dataclass(frozen=True)
class Example:
    """A prompt of a benchmark, and how what the model writes behind it is scored."""

    benchmark: str
    task: str
    prompt: str
    reference: Reference
    metric: Metric
    new_tokens: int
    first_line_only: bool = False

    def score(self, prediction: str) -> float:
        """The prediction's score in [0, 1]."""
        if self.first_line_only:
            prediction = prediction.lstrip("\n").split("\n")[0]
        return self.metric(prediction, self.reference)


_FILES = "hf://datasets"  # where the files of the hub's datasets are


def _json_lines(file: str) -> dict[str, Any]:
    return {"path": "json", "data_files": file, "split": "train"}


# What ``datasets.load_dataset`` gets for a task. LongBench's dataset is a script, which ``datasets`` does not
# run, around this archive; InfiniteBench's files differ in the types of their fields: single files load.
_HUB: dict[str, Callable[[str], dict[str, Any]]] = {
    "longbench": lambda task: _json_lines(f"zip://data/{task}.jsonl::{_FILES}/THUDM/LongBench/data.zip"),
    "infinitebench": lambda task: _json_lines(f"{_FILES}/xinrongzhang2022/InfiniteBench/{task}.jsonl"),
    "babilong": lambda task: {
        "path": _BABILONG_NAME,
        "name": task.partition("/")[0],
        "split": task.partition("/")[2],
    },
}
_BABILONG_NAME = "RMT-team/babilong"

_RULER_FAMILIES: dict[str, tuple[int, Metric]] = {
    "niah": (128, metrics.string_match_all),
    "vt": (30, metrics.string_match_all),
    "cwe": (120, metrics.string_match_all),
    "fwe": (50, metrics.string_match_all),
    "qa": (32, metrics.string_match_any),
}
_LONGBENCH: dict[str, tuple[int, Metric]] = {
    "narrativeqa": (128, metrics.token_f1),
    "qasper": (128, metrics.token_f1),
    "multifieldqa_en": (64, metrics.token_f1),
    "hotpotqa": (32, metrics.token_f1),
    "2wikimqa": (32, metrics.token_f1),
    "musique": (32, metrics.token_f1),
    "gov_report": (512, metrics.rouge_l),
    "qmsum": (512, metrics.rouge_l),
    "multi_news": (512, metrics.rouge_l),
    "trec": (64, metrics.classification),
    "triviaqa": (32, metrics.token_f1),
    "samsum": (128, metrics.rouge_l),
    "passage_count": (32, metrics.number_share),
    "passage_retrieval_en": (32, metrics.number_share),
    "lcc": (64, metrics.code_similarity),
    "repobench-p": (64, metrics.code_similarity),
}
_LONGBENCH_FIRST_LINE = ("trec", "triviaqa", "samsum")
_INFINITEBENCH: dict[str, tuple[int, Metric]] = {
    "passkey": (6, metrics.first_number),
    "number_string": (12, metrics.first_number),
    "kv_retrieval": (50, metrics.word_match),
    "longbook_sum_eng": (1200, metrics.rouge_l),
    "longbook_choice_eng": (40, metrics.choice),
    "longbook_qa_eng": (40, metrics.token_f1),
    "longdialogue_qa_eng": (40, metrics.word_match),
    "math_find": (3, metrics.first_number),
    "math_calc": (30000, metrics.leading_share),
    "code_run": (5, metrics.last_number),
    "code_debug": (5, metrics.choice),
}
_BABI_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_BABILONG_LABELS = {
    "qa1": _BABI_PLACES,
    "qa2": _BABI_PLACES,
    "qa3": _BABI_PLACES,
    "qa4": _BABI_PLACES,
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
}
_BABILONG_TOKENS = 15


def load(benchmark: str, task: str, source: str | Path | None = None) -> Iterator[Example]:
    """The examples of a task: ``source`` is a JSONL file, a folder with ``<task>.jsonl``, or None for the
    hub.

    BABILong's tasks are ``<length>/<qa>`` on the hub, such as ``4k/qa1``. ValueError for an unknown
    benchmark or task; KeyError if a row lacks a field of the format.
    """
    if benchmark not in _BENCHMARKS:
        raise ValueError(f"unknown benchmark {benchmark!r}; known: {', '.join(_BENCHMARKS)}")
    make, known = _BENCHMARKS[benchmark]
    name = _family(benchmark, task)
    if name not in known:
        raise ValueError(f"unknown {benchmark} task {task!r}; known: {', '.join(known)}")
    for row in _rows(benchmark, task, source):
        yield make(name, row)


def _family(benchmark: str, task: str) -> str:
    if benchmark == "ruler":
        return task.split("_")[0]
    return task.rpartition("/")[2] if benchmark == "babilong" else task


def _rows(benchmark: str, task: str, source: str | Path | None) -> Iterator[Mapping[str, Any]]:
    if source is not None:
        path = Path(source)
        path = path / f"{task}.jsonl" if path.is_dir() else path
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield json.loads(line)
        return
    if benchmark not in _HUB:
        raise ValueError(f"{benchmark} has no dataset to load: name the JSONL file that its scripts write")
    from datasets import load_dataset

    yield from load_dataset(**_HUB[benchmark](task))


def _ruler(task: str, row: Mapping[str, Any]) -> Example:
    tokens, metric = _RULER_FAMILIES[task]
    answers = tuple(map(str, row["outputs"]))
    # Newer files keep the beginning of the answer apart from the prompt.
    prompt = row["input"] + row.get("answer_prefix", "")
    return Example("ruler", task, prompt, Reference(answers), metric, tokens)


def _longbench(task: str, row: Mapping[str, Any]) -> Example:
    tokens, metric = _LONGBENCH[task]
    prompt = templates.LONGBENCH[task].format(context=row["context"], input=row["input"])
    reference = Reference(tuple(row["answers"]), choices=tuple(row["all_classes"] or ()))
    return Example("longbench", task, prompt, reference, metric, tokens, task in _LONGBENCH_FIRST_LINE)


def _babilong(task: str, row: Mapping[str, Any]) -> Example:
    instruction, examples, after = templates.BABILONG_PROMPTS[task]
    prompt = templates.BABILONG.format(
        instruction=instruction,
        examples=examples,
        post_prompt=after,
        context=row["input"].strip(),
        question=row["question"],
    )
    reference = Reference((row["target"],), row["question"], _BABILONG_LABELS[task])
    return Example("babilong", task, prompt, reference, metrics.label_match, _BABILONG_TOKENS)


def _infinitebench(task: str, row: Mapping[str, Any]) -> Example:
    tokens, metric = _INFINITEBENCH[task]
    fields = {"context": row["context"], "input": row["input"]}
    for letter, option in zip("ABCD", row.get("options") or (), strict=False):
        fields[f"OPTION_{letter}"] = option
    if task == "math_find":
        wanted = re.findall(r"The \w+ number", row["input"])[0].lower()
        fields["prefix"] = f"What is {wanted} in the following list?"
    if task == "code_run":
        fields["func_call"] = re.findall(r"func_\d+\(-?\d+\)", row["input"])[0]
        fields["func"] = fields["func_call"].partition("(")[0]
    prompt = templates.INFINITEBENCH[task].format(**fields)
    return Example("infinitebench", task, prompt, Reference(_answers(task, row)), metric, tokens)


def _answers(task: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    answer = row["answer"] if isinstance(row["answer"], (list, tuple)) else [row["answer"]]
    if task in ("longbook_choice_eng", "code_debug"):
        # The file gives the right option's text; the metric compares letters.
        return tuple(
            letter for letter, option in zip("ABCD", row["options"], strict=True) if option in answer
        )
    return tuple(map(str, answer))


_BENCHMARKS: dict[str, tuple[Callable[[str, Mapping[str, Any]], Example], tuple[str, ...]]] = {
    "ruler": (_ruler, tuple(_RULER_FAMILIES)),
    "longbench": (_longbench, tuple(_LONGBENCH)),
    "babilong": (_babilong, tuple(_BABILONG_LABELS)),
    "infinitebench": (_infinitebench, tuple(_INFINITEBENCH)),
}
