"""Write a model folder's README.md (the model card) from its training.json.

python examples/train_model/card.py examples/model
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evaluate import table_lines

_TEMPLATE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A small long-context retrieval model

A Llama-architecture model of {parameters:.2f} M parameters ({mebibytes:.1f} MiB in bfloat16) that finds
facts in documents of up to 32768 tokens. It exists so that sparse attention can be tried, timed and checked
on a trained model with real long-range heads, on any machine. It is no assistant: it answers the question
formats of `examples/train_model/tasks.py` and nothing else.

| | |
|---|---|
{shape}

Every sequence starts with the beginning-of-text token; the tokenizer adds it. No token crosses a newline.
An answer ends with a newline, which ends `generate` too (`generation_config.json`).

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("examples/model")
model = AutoModelForCausalLM.from_pretrained("examples/model")
fact = "The magic number of the amber harbor is 482913.\\n"
document = open("one_file.py").read() + fact + open("another_file.py").read()
question = "Question: What is the magic number of the amber harbor?\\nAnswer:"
ids = tokenizer(document + question, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids)[0, ids.shape[1] :]))
```

`examples/train_model/tasks.py` lists the formats; `build_prompt` there makes prompts of a given length and
depth.

## Accuracy

Exact match under full attention in bfloat16, documents from held-out files, seeds not used in training; in
brackets the number of questions. The most likely token had to be right at every position of the answer and
at the newline after it (teacher-forced, the same as greedy decoding up to rounding). *many*: 48 facts a
document and eight questions at its end; *single*: about ten facts and one question. 95 % intervals are in
`training.json`.

{tables}

Evaluated on {evaluation_device} with {evaluation_versions}; `evaluate.py` with {evaluation_arguments}.

## Training

{steps} steps, {tokens:.0f} M tokens, {seconds:.0f} s on one {device} ({versions}); revision `{revision}` of
this repository:

    python examples/train_model/train.py --out DIR --seconds {asked_seconds:.0f} --seed {seed}

Muon for the matrices inside the layers and AdamW for the rest, peak learning rate {lr}, {batch} tokens a
step, contexts of 512 to 32768 tokens in growing stages, then mixed. Each sequence is text with facts and
questions in it; the loss is the mean over the text's tokens plus the mean over the answers' tokens. Stages
end by the clock and batches come from racing processes: a second run with the same seed is alike, not
equal. The log is in `training.json`.

## Data

Sources and documentation of installed packages (.py, .md, .rst), {train_tokens:.1f} M tokens for training
and {test_tokens:.1f} M held out: one file in twenty, by the hash of its name (`corpus.py`). Identical files
are used once; similar ones (families of model implementations, say) may stand in both parts. All facts are
generated.

| package | version | licence | files | characters |
|---|---|---|---|---|
{packages}

## Limits

* It answers the formats that it was trained on, and no others; other wording may fail.
* `babi2` (the place of an object that a person carries) takes two lookups after the question is known;
  where many facts compete it mostly fails, see the table.
* Measured with one seed and one training run.
* Attention statistics of a model of this size rank methods and find bugs; they do not promise densities for
  a large model.

Licence: Apache-2.0. This card is written by `examples/train_model/card.py` from `training.json`.
"""


def card(record: dict, size: int) -> str:
    """The card's text; `size` is that of the weights file in bytes."""
    training, evaluation, manifest = record["training"], record["evaluation"], record["corpus"]
    rows = [
        f"| {name} | {entry['version']} | {entry['licence']} | {entry['files']} | {entry['characters']:,} |"
        for name, entry in manifest["packages"].items()
    ]
    return _TEMPLATE.format(
        parameters=record["parameters"] / 1e6,
        mebibytes=size / 2**20,
        shape="\n".join(f"| {name} | {value:g} |" for name, value in record["shape"].items()),
        tables="\n".join(table_lines(evaluation["results"])),
        evaluation_device=evaluation["device"],
        evaluation_versions=_pairs(evaluation["versions"]),
        evaluation_arguments=_pairs(evaluation["arguments"]),
        steps=training["steps"],
        tokens=training["tokens"] / 1e6,
        seconds=training["seconds"],
        device=record["device"],
        versions=_pairs(record["versions"]),
        revision=record["revision"],
        asked_seconds=record["arguments"]["seconds"],
        seed=record["arguments"]["seed"],
        lr=record["arguments"]["lr"],
        batch=record["arguments"]["batch_tokens"],
        train_tokens=manifest["tokens"]["train"] / 1e6,
        test_tokens=manifest["tokens"]["test"] / 1e6,
        packages="\n".join(rows),
    )


def _pairs(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def main() -> None:
    folder = Path(sys.argv[1])
    record = json.loads((folder / "training.json").read_text())
    (folder / "README.md").write_text(card(record, (folder / "model.safetensors").stat().st_size))


if __name__ == "__main__":
    main()
