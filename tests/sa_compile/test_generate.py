"""``model.compile(backend="sampleattn")``, then ``generate``: the spelling in which generate() compiles."""

import pytest
import torch
from support.models import LOSSLESS, tiny_llama

from sa_compile import report

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def prompts(lengths):
    """Left-padded prompts of the given lengths, and their attention mask."""
    width = max(lengths)
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    tokens = torch.randint(1, 96, (len(lengths), width), generator=torch.Generator().manual_seed(5))
    return {"input_ids": tokens * mask, "attention_mask": mask}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(
    "lengths", [pytest.param([70], id="one-prompt"), pytest.param([70, 33, 52], id="left-padded-batch")]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_tokens_are_the_uncompiled_models(cache, lengths, attention):
    model = tiny_llama(attn_implementation=attention)
    inputs = prompts(lengths)
    expected = model.generate(**inputs, **GREEDY, cache_implementation=cache)
    model.compile(backend="sampleattn", options={**LOSSLESS, "inner": "aot_eager"})
    with report.collect() as reports:
        actual = model.generate(**inputs, **GREEDY, cache_implementation=cache)
    assert torch.equal(actual, expected)
    assert any(site.q_len > 1 for graph in reports for site in graph.sites), "the prefill was not compiled"


def test_prompts_of_many_lengths_cost_at_most_three_prefill_graphs():
    model = tiny_llama()
    expected = {n: model.generate(**prompts([n]), **GREEDY) for n in (300, 700, 1500, 3000)}
    options = {**LOSSLESS, "min_seq_len": 1024, "inner": "aot_eager"}
    model.compile(backend="sampleattn", options=options)
    with report.collect() as reports:
        for length, tokens in expected.items():
            assert torch.equal(model.generate(**prompts([length]), **GREEDY), tokens)
    prefills = [graph for graph in reports if graph.sites and graph.sites[0].q_len != 1]
    assert len(prefills) <= 3
    assert {site.outcome for graph in prefills for site in graph.sites} == {"sampled", "exact"}
