"""Imported by the process that workers are forked from: torch.compile loads most of itself on first use."""

import torch

from sa_compile.lab.census import tiny, variants

torch.set_num_threads(1)
variants.measure(tiny.build("LlamaForCausalLM", "llama", "sdpa"), variants.QUICK[0])
torch._dynamo.reset()
