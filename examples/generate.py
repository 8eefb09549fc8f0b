"""Generate text from a long prompt: ``model.compile(backend="sampleattn")``, then ``generate`` as ever.

``torch.compile(model).generate(...)`` would compile nothing: it hands back the model's own ``generate``.
Usage: ``python examples/generate.py [--model FOLDER] [--file TEXT] [--question "..."]``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from quickstart import MODEL, reference_manual_prompt
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=MODEL, help="a Hugging Face model folder (default: the shipped one)"
    )
    parser.add_argument("--file", type=Path, help="a text to put before the question (default: a manual)")
    parser.add_argument("--question", default="", help="what to ask at the end of the text")
    parser.add_argument("--tokens", type=int, default=12, help="new tokens at most (default 12)")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    if arguments.file is None:
        prompt = reference_manual_prompt(tokenizer, length=8192, seed=1)
        text = prompt.document + (arguments.question or prompt.question)
    else:
        text = arguments.file.read_text() + arguments.question
    inputs = tokenizer(text, return_tensors="pt")

    model.compile(backend="sampleattn")
    for call in ("first call, compiles", "second call"):
        start = time.perf_counter()
        output = model.generate(**inputs, max_new_tokens=arguments.tokens, do_sample=False)
        print(f"{call}: {inputs.input_ids.shape[1]} tokens in, {time.perf_counter() - start:.1f} s")
    print(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main()
