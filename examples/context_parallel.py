"""Context parallel: several ranks share the rows of one long prompt, and answer together.

    torchrun --nproc-per-node 2 examples/context_parallel.py [--model FOLDER] [--length 8192] [--new-tokens 8]

Every rank holds the whole model, and of the prompt runs of 128 rows in turn; keys and values are gathered a
layer at a time. Printed are what was done on a rank, the share of blocks kept on each rank and how uneven it
is (the largest by the mean: the ranks wait for the slowest), and the answer. NCCL where there are GPUs, else
gloo.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from quickstart import MODEL, reference_manual_prompt
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, AutoTokenizer

import sa_compile
import sa_compile.hf
from sa_compile.distributed.process import join, leave


def main() -> None:
    arguments = _arguments()
    device = join()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval().to(device)
    prompt = reference_manual_prompt(tokenizer, length=arguments.length, seed=1)
    inputs = tokenizer(prompt.document + prompt.question, return_tensors="pt").to(device)
    ranks = init_device_mesh(device.type, (dist.get_world_size(),))
    sa_compile.context_parallel(model, ranks, {"stats": True})
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=arguments.new_tokens, do_sample=False)
    stats = sa_compile.stats()
    densities, imbalance = stats.density_of_ranks(), stats.imbalance()
    if dist.get_rank() == 0:
        print(sa_compile.hf.report(model))
        print(f"kept on each rank: {', '.join(f'{x:.3f}' for x in densities)}", end="; ")
        print(f"largest / mean: {imbalance:.3f}")
        answer = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        print(f"{prompt.question.strip()}{answer.rstrip()} (expected:{prompt.answer})")
    leave()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="a model folder (default: the shipped one)")
    parser.add_argument("--length", type=int, default=8192, help="prompt length in tokens (default 8192)")
    parser.add_argument("--new-tokens", type=int, default=8, help="new tokens at most (default 8)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
