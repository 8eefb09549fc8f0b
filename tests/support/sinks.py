"""A small model with attention sinks: gpt-oss, one sliding layer and one full one."""

import torch
from support.models import SHAPE
from transformers import GptOssConfig, GptOssForCausalLM


def tiny_gpt_oss(**overrides):
    """A random gpt-oss whose sinks matter, the same at every call."""
    torch.manual_seed(0)
    sizes = {**SHAPE, "head_dim": 16, "sliding_window": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = GptOssConfig(**{**sizes, **tokens, "attn_implementation": "eager", **overrides})
    model = GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.normal_(0.0, 2.0)
    return model
