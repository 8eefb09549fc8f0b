"""Dynamo's limit on graphs: enough for a server's prompts, and said aloud where it ends."""

import random
import threading

import pytest
import torch
import torch.nn.functional as F
from support.models import tiny_llama
from torch._dynamo import config
from transformers import DynamicCache

import sa_compile
from sa_compile import recompiles, report

TORCHS_DEFAULT = 8
GREEDY = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def torchs_default_limit(monkeypatch):
    """The limit as a fresh process has it."""
    torch._dynamo.reset()
    monkeypatch.setattr(config._config["recompile_limit"], "default", TORCHS_DEFAULT)


def chats(model, chats, seed=0):
    """Chats of three turns, long, short and long, in batches of 1, 2 and 4: rows, prompt and cache."""
    draw = random.Random(seed)
    for number in range(chats):
        batch = (1, 2, 4)[number % 3]
        cache, tokens = DynamicCache(), torch.empty(batch, 0, dtype=torch.long)
        for shortest, longest in ((260, 400), (2, 60), (260, 400)):
            rows = draw.randint(shortest, longest)
            new = torch.randint(1, 96, (batch, rows), generator=torch.Generator().manual_seed(rows))
            tokens = torch.cat([tokens, new], 1)
            yield rows, tokens, cache
            tokens = model.generate(tokens, past_key_values=cache, **GREEDY)


@pytest.mark.filterwarnings("ignore")
def test_every_long_prefill_of_a_server_is_sampled_with_default_limits():
    model = tiny_llama(num_hidden_layers=1)
    model.compile(backend="sampleattn", options={"min_seq_len": 256, "inner": "eager", "stats": True})
    sa_compile.gathered_stats._gathered.clear()

    def sampled():
        return sum(site.calls for site in sa_compile.stats().sites)

    long_prefills = 0
    for rows, _, _ in chats(model, 12):
        assert sampled() == long_prefills
        long_prefills += rows >= 256
    assert sampled() == long_prefills == 24


def attention(x):
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def compile_lengths(lengths, **kwargs):
    """Compile a graph for each length; the reports."""
    compiled = torch.compile(
        attention, backend="sampleattn", dynamic=False, options={"inner": "eager"}, **kwargs
    )
    with report.collect() as reports, torch.no_grad():
        for length in lengths:
            compiled(torch.ones(1, 1, length, 16))
    return reports


def test_the_last_graph_that_dynamo_makes_says_so():
    with config.patch(recompile_limit=3), pytest.warns(UserWarning, match="nothing is sampled there") as seen:
        reports = compile_lengths([4, 5, 6, 7])
    assert len(seen) == 1
    assert [bool(one.last_graph) for one in reports] == [False, False, True]
    last = f"graph 2 is the last of 3 graphs that Dynamo makes of attention ({__file__}:"
    assert last in str(report.Report(tuple(reports)))


@pytest.mark.parametrize("thread", [False, True], ids=["this-thread", "another-thread"])
def test_more_graphs_than_torchs_default_allows(thread, recwarn):
    lengths = range(4, 5 + TORCHS_DEFAULT)
    compile_lengths([3])
    if thread:
        run = threading.Thread(target=compile_lengths, args=(lengths,))
        run.start()
        run.join()
    else:
        compile_lengths(lengths)
    assert len(torch._dynamo.eval_frame._debug_get_cache_entry_list(attention)) == len(lengths) + 1
    assert not [w for w in recwarn if "graphs" in str(w.message)]


def test_a_limit_that_was_set_stays():
    with config.patch(recompile_limit=5):
        compile_lengths([4])
        assert config.recompile_limit == 5
    compile_lengths([5])
    assert config.recompile_limit == recompiles.GRAPHS_OF_ONE_FUNCTION
