"""Calls of Hugging Face models by the names that their version has."""

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from sa_compile.model_call import cache_argument, cache_of


class Newer:
    def forward(self, input_ids, cache=None, **kwargs): ...


class Older:
    def forward(self, input_ids, past_key_values=None, **kwargs): ...


@pytest.mark.parametrize("model, name", [(Newer(), "cache"), (Older(), "past_key_values")])
def test_the_caches_argument_is_named_as_the_model_has_it(model, name):
    assert cache_argument(model) == name


def tiny_llama():
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_the_installed_transformers_fills_a_cache_that_it_is_given_so(recwarn):
    model, cache = tiny_llama(), DynamicCache()
    model(input_ids=torch.ones(1, 5, dtype=torch.int64), **{cache_argument(model): cache})
    assert cache.get_seq_length() == 5
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]


@torch.no_grad()
def test_the_cache_of_an_output_is_read_without_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr(
        logging.Logger, "warning", lambda self, message, *args, **kwargs: said.append(message)
    )
    output = tiny_llama()(input_ids=torch.ones(1, 5, dtype=torch.int64), use_cache=True)
    assert cache_of(output).get_seq_length() == 5
    assert said == []


@pytest.mark.parametrize(
    "output, cache",
    [
        (SimpleNamespace(cache="new"), "new"),
        (SimpleNamespace(past_key_values="old"), "old"),
        (SimpleNamespace(logits=0), None),
    ],
)
def test_the_cache_of_an_output_has_either_name_or_there_is_none(output, cache):
    assert cache_of(output) == cache
