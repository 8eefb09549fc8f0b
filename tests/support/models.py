"""Small models whose prompts are long enough to be sampled."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Options under which a prompt of 64 tokens takes the sampled path, with every block kept.
SMALL_BLOCKS = {"block_q": 16, "block_k": 16, "min_seq_len": 32}
LOSSLESS = {**SMALL_BLOCKS, "peak": 0.0}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "vocab_size": 96,
}


def tiny_llama(**overrides):
    """A random Llama of two layers, the same at every call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **overrides})).eval()
