"""Exact-match accuracy of a model folder under full attention, per task and length.

    python examples/train_model/evaluate.py --model examples/model --record eval.json

The model is loaded through AutoModelForCausalLM. Documents come from the held-out files of the packages
installed here, or from those of a prepared corpus folder that has the model's tokenizer (--corpus); facts and
questions from seeds that training does not use. Answers are teacher-forced: one counts as right if the most
likely token is right at every position of the answer and of the newline that ends it, which is when greedy
decoding would write exactly that answer. Two protocols:

* ``many``: 48 facts a document, eight questions one after another at its end;
* ``single``: ten facts or so a document, one question at its end (what a user's prompt looks like).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import transformers
from corpus import collect, encode_stream
from sequences import ANSWER, MIXTURE, SequenceBuilder
from tasks import TASKS, write_items
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

LENGTHS = (4096, 8192, 16384, 32768)
_ASKED = 8  # questions a document under 'many'


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    z, share = 1.96, right / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return round(max(0.0, (middle - spread) / scale), 4), round(min(1.0, (middle + spread) / scale), 4)


def many_document(builder: SequenceBuilder, seed: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A document with one question of every task and one more, all at its end."""
    rng = random.Random(seed)
    asked = [*TASKS, TASKS[int(rng.random() * len(TASKS))]]
    items = write_items(rng, MIXTURE, 48, first=asked)
    return builder.build(rng, length, items, questions=_ASKED)


def single_document(
    builder: SequenceBuilder, seed: str, length: int, task: str
) -> tuple[np.ndarray, np.ndarray]:
    """A document with one question of `task` at its end."""
    rng = random.Random(seed)
    return builder.build(rng, length, write_items(rng, MIXTURE, 10, first=[task]), questions=1)


@torch.no_grad()
def score(model, tokens: np.ndarray, kinds: np.ndarray) -> list[tuple[str, bool]]:
    """(task, right) for every question of one document; tokens and kinds are [length]."""
    first = int(np.flatnonzero(kinds >= ANSWER)[0])
    keep = len(tokens) - first + 1
    ids = torch.from_numpy(tokens.astype(np.int64))[None].to(model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[0, :-1]
    right = (logits.argmax(-1) == ids[0, first:]).cpu().numpy()
    answers: list[tuple[str, bool]] = []
    before = -1
    for kind, hit in zip(kinds[first:], right, strict=True):
        if kind >= ANSWER and kind == before:
            answers[-1] = (answers[-1][0], answers[-1][1] and bool(hit))
        elif kind >= ANSWER:
            answers.append((TASKS[kind - ANSWER], bool(hit)))
        before = kind
    return answers


def evaluate(model, builder: SequenceBuilder, seed: int, count: int, single: int, lengths=LENGTHS) -> dict:
    """Accuracies {protocol: {task: {length: cell}}}, `count` and `single` questions a cell."""
    right: dict = defaultdict(lambda: [0, 0])
    for length in lengths:
        for index in range(count):
            for task, hit in score(model, *many_document(builder, f"many-{seed}-{length}-{index}", length)):
                right["many", task, length][0] += hit
                right["many", task, length][1] += 1
        for task in TASKS:
            for index in range(single):
                document = single_document(builder, f"single-{seed}-{task}-{length}-{index}", length, task)
                right["single", task, length][0] += score(model, *document)[0][1]
                right["single", task, length][1] += 1
    table: dict = {}
    for (protocol, task, length), (hits, total) in sorted(right.items(), key=str):
        cell = {"accuracy": round(hits / total, 4), "questions": total, "interval": interval(hits, total)}
        table.setdefault(protocol, {}).setdefault(task, {})[str(length)] = cell
    return table


def table_lines(results: dict) -> list[str]:
    """The accuracies as the rows of a Markdown table, one table for each protocol."""
    lines = []
    for protocol, tasks in results.items():
        lengths = sorted(next(iter(tasks.values())), key=int)
        lines += ["", f"| {protocol} | " + " | ".join(f"{int(length) // 1024}K" for length in lengths) + " |"]
        lines.append("|---" * (len(lengths) + 1) + "|")
        for task in TASKS:
            cells = (
                f"{tasks[task][length]['accuracy']:.3f} ({tasks[task][length]['questions']})"
                for length in lengths
            )
            lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return lines[1:]


def held_out(model: Path) -> SequenceBuilder:
    """The builder over the held-out files of installed packages, with the tokenizer of a model folder."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [source.text for source in collect(split="test", limit=500_000)]
    return SequenceBuilder.over(encode_stream(tokenizer, texts), tokenizer)


def environment(device: torch.device) -> dict:
    """What a result was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"device": name, "versions": {**versions, "transformers": transformers.__version__}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--corpus", type=Path, help="prepared corpus folder (default: installed packages)")
    parser.add_argument("--record", type=Path, help="JSON file whose 'evaluation' is to be (re)placed")
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--count", type=int, default=220, help="documents a length under 'many'")
    parser.add_argument("--single", type=int, default=100, help="documents a task and length under 'single'")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).to(device).eval()
    builder = SequenceBuilder.load(options.corpus, "test") if options.corpus else held_out(options.model)
    results = evaluate(model, builder, options.seed, options.count, options.single, options.lengths)
    print("\n".join(table_lines(results)))
    if options.record:
        record = json.loads(options.record.read_text()) if options.record.exists() else {}
        asked = {name: getattr(options, name) for name in ("seed", "count", "single")}
        record["evaluation"] = {"arguments": asked, **environment(device), "results": results}
        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
