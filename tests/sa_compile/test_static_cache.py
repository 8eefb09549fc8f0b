"""Static caches in compiled models: their length is a tensor, and ``generate`` makes their masks itself."""

import pytest
import torch
from support.everyday import GREEDY, left_padded, prompt
from support.models import LOSSLESS, tiny_llama
from transformers import StaticCache

from sa_compile import report

# A mask that turns out not to be causal when it is read is a warning.
pytestmark = pytest.mark.filterwarnings("error:sampleattn")

OPTIONS = {**LOSSLESS, "inner": "aot_eager"}
ROOM = 160


def prefills(reports):
    """Outcomes of the attentions of the graphs that read prompts."""
    return {(site.outcome, site.form) for graph in reports for site in graph.sites if site.q_len != 1}


def cache_of(model, early=False):
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    if early:
        cache.early_initialization(1, 2, 16, torch.float32, torch.device("cpu"))
    return cache


def turns(model, early, masked):
    """Logits of a first prompt, of a second one behind it, and of a prompt in the cache that was reset."""
    cache, results = cache_of(model, early), []
    for turn, length in enumerate((64, 48)):
        seen = 64 + 48 * turn
        padding = {"attention_mask": torch.ones(1, seen, dtype=torch.long)} if masked else {}
        if masked:
            padding["attention_mask"][:, :5] = 0
        results.append(model(prompt("cpu", length, seed=turn), past_key_values=cache, **padding).logits)
    cache.reset()
    results.append(model(prompt("cpu", 64, seed=3), past_key_values=cache).logits)
    return results


@torch.no_grad()
@pytest.mark.parametrize("early", [False, True], ids=["lazy", "early"])
@pytest.mark.parametrize(
    "attention, masked", [("sdpa", False), ("sdpa", True), ("eager", False)], ids=["sdpa", "padded", "eager"]
)
def test_first_second_and_reset_are_sampled(early, attention, masked):
    model = tiny_llama(attn_implementation=attention)
    expected = turns(model, early, masked)
    model.compile(backend="sampleattn", options=OPTIONS)
    with report.collect() as reports:
        actual = turns(model, early, masked)
    for one, other in zip(actual, expected, strict=True):
        # Padded rows see no key: what they hold depends on nothing that anyone reads.
        torch.testing.assert_close(one[:, 5:], other[:, 5:], atol=1e-4, rtol=1e-4)
    assert {("sampled", "late")} <= prefills(reports) <= {("sampled", "sampled"), ("sampled", "late")}


SETTINGS = {
    "output_logits": True,
    "return_dict_in_generate": True,
    "cache_implementation": "static",
    **GREEDY,
}


@pytest.mark.parametrize("lengths", [[150], [150, 120, 90]], ids=["one prompt", "left-padded"])
@pytest.mark.parametrize("chunk", [None, 64], ids=["whole", "chunks"])
def test_generate(lengths, chunk):
    model, inputs = tiny_llama(), left_padded("cpu", lengths)
    settings = SETTINGS | ({"prefill_chunk_size": chunk} if chunk else {})
    expected = model.generate(**inputs, **settings)
    model.compile(backend="sampleattn", options={**OPTIONS, "min_seq_len": 16})
    with report.collect() as reports:
        actual = model.generate(**inputs, **settings)
    torch.testing.assert_close(torch.stack(actual.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)
    # generate hands a first prompt without padding no mask.
    made_by_generate = len(lengths) > 1 or chunk is not None
    assert ("sampled", "late" if made_by_generate else "sampled") in prefills(reports)
    assert prefills(reports) <= {("sampled", "sampled"), ("sampled", "late")}


def test_generate_a_second_turn():
    def talk(model):
        cache, tokens = cache_of(model), prompt("cpu", 70)
        for turn in range(2):
            tokens = torch.cat([tokens, prompt("cpu", 40, seed=turn)], 1)
            settings = {**GREEDY, "max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
            done = model.generate(tokens, past_key_values=cache, **settings)
            tokens = done.sequences
        return torch.stack(done.logits)

    model = tiny_llama()
    expected = talk(model)
    model.compile(backend="sampleattn", options=OPTIONS)
    with report.collect() as reports:
        actual = talk(model)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert {("sampled", "late")} <= prefills(reports) <= {("sampled", "sampled"), ("sampled", "late")}


@torch.no_grad()
def test_inductor_and_stats():
    model, options = tiny_llama(), {**LOSSLESS, "stats": True}
    expected = turns(model, early=False, masked=False)
    model.compile(backend="sampleattn", options=options)
    with report.collect() as reports:
        actual = turns(model, early=False, masked=False)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    measured = report.Report(tuple(reports)).stats()
    assert len(measured.sites) == len([site for graph in reports for site in graph.sites])
    assert measured.density == 1.0 and measured.cra_min > 0.999


@torch.no_grad()
def test_short_prompts_are_kept_and_say_why():
    model = tiny_llama()
    model.compile(backend="sampleattn", options={**OPTIONS, "min_seq_len": 100})
    with report.collect() as reports:
        turns(model, early=True, masked=False)
    reasons = {site.reason for graph in reports for site in graph.sites}
    assert reasons == {"shorter than min_seq_len (100); its causal offset is known only when it runs"}
