"""Tensor parallel as transformers does it: every rank samples the attention of its own heads.

    torchrun --nproc-per-node 2 examples/tensor_parallel.py [--model FOLDER] [--length 8192] [--new-tokens 8]

Each rank loads its part of the model (``tp_plan="auto"``, which needs accelerate), compiles it with
``backend="sampleattn"`` and generates from a long prompt. Printed are what the backend did on a rank, the
share of blocks kept on each rank and how uneven it is (the largest by the mean: the ranks wait for the
slowest), and the answer. NCCL where there are GPUs, gloo on CPUs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from quickstart import MODEL, reference_manual_prompt
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import sa_compile
from sa_compile import report
from sa_compile.distributed.process import join, leave


def main() -> None:
    arguments = _arguments()
    device = join()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = load(arguments.model, device)
    prompt = reference_manual_prompt(tokenizer, length=arguments.length, seed=1)
    inputs = tokenizer(prompt.document + prompt.question, return_tensors="pt").to(device)
    model.compile(backend="sampleattn", options={"stats": True})
    with report.collect() as reports:
        output = model.generate(**inputs, max_new_tokens=arguments.new_tokens, do_sample=False)
    stats = sa_compile.stats()
    densities, imbalance = stats.density_of_ranks(), stats.imbalance()
    if dist.get_rank() == 0:
        print(sa_compile.Report(tuple(reports)))
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


def load(folder: Path, device: torch.device) -> torch.nn.Module:
    """This rank's part of the model. Raises ValueError if the ranks can not share its key/value heads."""
    heads, ranks = AutoConfig.from_pretrained(folder).num_key_value_heads, dist.get_world_size()
    if heads % ranks:
        raise ValueError(
            f"'--nproc-per-node' must divide the model's {heads} key/value heads, got {ranks} ranks; any "
            "number can share a prompt's rows instead: examples/context_parallel.py"
        )
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, tp_plan="auto").eval()


if __name__ == "__main__":
    main()
