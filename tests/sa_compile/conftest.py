"""Small models whose prompts are long enough to be sampled."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Options under which a prompt of 64 tokens takes the sampled path, with every block kept.
SMALL_BLOCKS = {"block_q": 16, "block_k": 16, "min_seq_len": 32}
LOSSLESS = {**SMALL_BLOCKS, "alpha_c": 1.0, "alpha_s": 1.0}


def tiny_llama(**overrides):
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=96)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **overrides})).eval()


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def llama():
    return tiny_llama()


@pytest.fixture
def tokens():
    return torch.randint(0, 96, (1, 64), generator=torch.Generator().manual_seed(1))
