"""gpt-oss as users run it: prompts of two lengths, padding, caches, training; compiled and not compiled."""

import pytest
import torch
from support.models import LOSSLESS, SMALL_BLOCKS
from support.sinks import tiny_gpt_oss
from transformers import StaticCache

import sa_compile
import sa_compile.hf
from sa_compile import report

GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
EAGER = {**LOSSLESS, "inner": "eager"}


def prompts(*lengths):
    """Left-padded prompts, and their attention mask."""
    width = max(lengths)
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    tokens = torch.randint(3, 96, (len(lengths), width), generator=torch.Generator().manual_seed(5))
    return {"input_ids": tokens * mask, "attention_mask": mask}


def without_compiling(options=LOSSLESS):
    model = tiny_gpt_oss(attn_implementation="sampleattn")
    sa_compile.hf.configure(model, options)
    return model


def forms(sites):
    return {(site.outcome, site.form) for site in sites}


BOTH_LAYERS = {("sampled", "sampled"), ("exact", "block_sparse")}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("lengths", [(70,), (70, 33, 52)], ids=["one-prompt", "left-padded-batch"])
def test_generate(cache, lengths):
    model = tiny_gpt_oss()
    settings = {**GREEDY, "cache_implementation": cache}
    expected = model.generate(**prompts(*lengths), **settings)
    model.compile(backend="sampleattn", options=EAGER)
    with report.collect() as reports:
        actual = model.generate(**prompts(*lengths), **settings)
    assert torch.equal(actual, expected)
    prefill = [site for graph in reports for site in graph.sites if site.q_len > 1]
    if cache == "dynamic":
        assert forms(prefill) == BOTH_LAYERS
    else:  # generate makes the masks of static caches itself, which the graph reads
        assert forms(prefill) == {("sampled", "late"), ("exact", "late")}
    assert torch.equal(without_compiling().generate(**prompts(*lengths), **settings), expected)


@torch.no_grad()
def test_two_lengths_the_second_of_which_is_short():
    model, other = tiny_gpt_oss(), without_compiling()
    compiled = torch.compile(model, backend="sampleattn", options=EAGER)
    for lengths, expected in (((80, 61), BOTH_LAYERS), ((30, 27), {("exact", "block_sparse")})):
        inputs = prompts(*lengths)
        wanted = model(**inputs).logits
        with report.collect() as reports:
            torch.testing.assert_close(compiled(**inputs).logits, wanted, **CLOSE)
        assert forms(site for graph in reports for site in graph.sites) == expected
        sa_compile.hf.reset_report(other)
        torch.testing.assert_close(other(**inputs).logits, wanted, **CLOSE)
        assert forms(sa_compile.hf.report(other).sites) == expected


@torch.no_grad()
def test_a_second_turn_in_a_static_cache_and_one_after_its_reset():
    model, logits = tiny_gpt_oss(layer_types=["full_attention"] * 2), []
    compiled = torch.compile(model, backend="sampleattn", options=EAGER)
    with report.collect() as reports:
        for run in (model, compiled):
            cache = StaticCache(config=model.config, max_cache_len=160)
            logits += [run(prompts(n)["input_ids"], past_key_values=cache).logits for n in (64, 48)]
            cache.reset()
            logits.append(run(prompts(64)["input_ids"], past_key_values=cache).logits)
    for expected, actual in zip(logits[:3], logits[3:], strict=True):
        torch.testing.assert_close(actual, expected, **CLOSE)
    found = forms(site for graph in reports for site in graph.sites)
    assert ("sampled", "late") in found and {outcome for outcome, _ in found} == {"sampled"}


@torch.no_grad()
@pytest.mark.parametrize("method", ["adaptive", "chunked", "stride"])
def test_what_is_kept_is_kept_alike_and_measured(method):
    lossy = {
        "adaptive": {"peak": 1.0, "tau": 0.5, "budget": 1.0, "means": True, "last_rows": 0},
        "chunked": {"alpha_c": 0.5, "alpha_s": 0.3, "last_rows": 0},
        "stride": {"alpha_c": 0.5, "r_w": 0.1},
    }
    options = {**SMALL_BLOCKS, **lossy[method], "method": method, "stats": True}
    model, other = tiny_gpt_oss(), without_compiling(options)
    compiled = torch.compile(model, backend="sampleattn", options={**options, "inner": "eager"})
    inputs = prompts(256, 200)
    torch.testing.assert_close(other(**inputs).logits, compiled(**inputs).logits, **CLOSE)
    stats = sa_compile.hf.report(other).stats()
    assert 0.2 < stats.density < 0.99 and len(stats.sites) == 1


def test_a_step_that_trains_stays_as_it_was():
    ours, eager = without_compiling(), tiny_gpt_oss()
    for model in (ours, eager):
        model(**prompts(64)).logits.square().mean().backward()
    for (name, actual), expected in zip(ours.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name)
    (reason,) = {site.reason for site in sa_compile.hf.report(ours).sites}
    assert reason == (
        "the model's own eager attention: attention sinks (s_aux); "
        "training: the block-sparse op has no gradient"
    )


@torch.no_grad()
def test_sinks_that_are_not_one_a_head_are_left_to_the_model():
    calls = []

    class Module(torch.nn.Module):
        is_causal = True
        num_key_value_groups = 1

    def eager_attention_forward(module, query, key, value, mask, **arguments):
        calls.append(arguments)
        return value.transpose(1, 2), None

    globals()["eager_attention_forward"] = eager_attention_forward
    try:
        q, k, v = torch.randn(3, 1, 4, 64, 16)
        module = Module().eval()
        attention = sa_compile.hf.attention.sampleattn_attention
        for arguments in ({"s_aux": torch.zeros(1, 4, 64, 1)}, {"sinks": torch.zeros(1, 4, 64, 1)}):
            attention(module, q, k, v, None, **arguments)
            assert calls.pop().keys() >= arguments.keys()
    finally:
        del globals()["eager_attention_forward"]
