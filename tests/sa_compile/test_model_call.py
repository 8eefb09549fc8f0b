"""Calls of Hugging Face models by the names that their version has."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from sa_compile.model_call import cache_argument


class Newer:
    def forward(self, input_ids, cache=None, **kwargs): ...


class Older:
    def forward(self, input_ids, past_key_values=None, **kwargs): ...


@pytest.mark.parametrize("model, name", [(Newer(), "cache"), (Older(), "past_key_values")])
def test_the_caches_argument_is_named_as_the_model_has_it(model, name):
    assert cache_argument(model) == name


@torch.no_grad()
def test_the_installed_transformers_fills_a_cache_that_it_is_given_so(recwarn):
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model, cache = LlamaForCausalLM(config).eval(), DynamicCache()
    model(input_ids=torch.ones(1, 5, dtype=torch.int64), **{cache_argument(model): cache})
    assert cache.get_seq_length() == 5
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]
