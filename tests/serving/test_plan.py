"""Which requests of a step are sampled, how the options come there, and what is counted; without vLLM."""

from __future__ import annotations

import json

import pytest
import torch
from support.profiles import write_profile

from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels.shared.blocks import causal_blocks, pack_bits
from sa_compile.serving.vllm import options
from sa_compile.serving.vllm.counters import Counters, allowed_blocks
from sa_compile.serving.vllm.plan import CHUNK_ROWS, long_requests, rehearsal, runs_between

CONFIG = SampleAttentionConfig(min_seq_len=4096)


def starts_of(q_lens):
    starts = [0]
    for q_len in q_lens:
        starts.append(starts[-1] + q_len)
    return starts


def sampled(q_lens, kv_lens, config=CONFIG, prefilling=None):
    return [one.row for one in long_requests(starts_of(q_lens), kv_lens, prefilling, config)]


@pytest.mark.parametrize(
    "q_len, kv_len, expected",
    [
        (4096, 4096, True),
        (4095, 4095, False),
        (4096, 100_000, True),
        (1, 100_000, False),  # decode
        (CHUNK_ROWS, 100_000, True),  # a chunk of a long prompt
        (CHUNK_ROWS - 1, 100_000, False),  # a question behind a cached document
        (CHUNK_ROWS, 5000, False),  # fewer scores than a prompt of min_seq_len has
    ],
)
def test_prompts_and_chunks_are_sampled_from_a_length_on(q_len, kv_len, expected):
    assert bool(sampled([q_len], [kv_len])) == expected


def test_requests_keep_their_places_in_a_mixed_batch():
    q_lens, kv_lens = [1, 5000, 300, 1, 8192, 1, 0, 0], [9000, 5000, 300, 70, 30_000, 9, 0, 0]
    starts = starts_of(q_lens)
    long = long_requests(starts, kv_lens, None, CONFIG)
    assert [(one.row, one.tokens, one.q_len, one.kv_len) for one in long] == [
        (1, slice(1, 5001), 5000, 5000),
        (4, slice(5302, 13494), 8192, 30_000),
    ]
    rest = [(run.rows, run.tokens) for run in runs_between(long, starts)]
    assert rest == [
        (slice(0, 1), slice(0, 1)),
        (slice(2, 4), slice(5001, 5302)),
        (slice(5, 6), slice(13494, 13495)),
    ]


def test_what_is_said_to_decode_is_never_sampled():
    config = SampleAttentionConfig(min_seq_len=1)
    assert sampled([1, 4], [9000, 9000], config) == [1]
    assert sampled([4, 4], [9000, 9000], config, [False, True]) == [1]


def test_a_profile_s_ranges_are_lengths_of_the_prompt_so_far(tmp_path):
    model = {"model_class": "", "parameters": 0, "layout": "", "attentions": [], "weights": []}
    ranges = [(2000, 7999, {"tau": 0.1}), (8000, 15_999, None), (16_000, None, {"tau": 0.3})]
    config = SampleAttentionConfig(profile=write_profile(tmp_path / "profile.json", model, ranges))
    requests = long_requests(starts_of([2048] * 4 + [1500]), [2048, 4096, 10_000, 18_000, 1500], None, config)
    assert [(one.row, one.config.tau) for one in requests] == [(0, 0.1), (1, 0.1), (3, 0.3)]


def test_a_rehearsal_has_every_length_that_kernels_are_compiled_for():
    whole = [(q_len, kv_len) for q_len, kv_len, _ in rehearsal(CONFIG, 40_000, 20_000)]
    assert whole == [(n, n) for n in (20_000, 19_997, 10_000, 9997, 5000, 4997)]
    chunks = [(q_len, kv_len) for q_len, kv_len, _ in rehearsal(CONFIG, 8192, 32_768)]
    assert chunks[:4] == [(8192, 32_768), (8192, 32_765), (8192, 16_384), (8192, 16_381)]
    assert chunks[-1] == (4096, 4096)
    assert rehearsal(CONFIG, 8192, 4000) == []


def test_options_of_the_command_line_stand_over_those_of_the_environment(monkeypatch):
    monkeypatch.setenv(options.ENVIRONMENT, json.dumps({"tau": 0.1, "min_seq_len": 2000}))
    config = options.options_of({"sampleattn": {"tau": 0.3}, "of another plug-in": 1})
    assert (config.tau, config.min_seq_len) == (0.3, 2000)
    assert options.are_given({})
    monkeypatch.delenv(options.ENVIRONMENT)
    assert options.options_of({}) == SampleAttentionConfig()
    assert not options.are_given({})


@pytest.mark.parametrize(
    "given, environment, message",
    [
        ({"taau": 1}, None, "unknown option 'taau'"),
        ({"tau": 2}, None, "option 'tau' must be in"),
        ({"trace": "/tmp"}, None, "option 'trace' needs torch.compile"),
        ({"stats": True}, None, "option 'stats' needs torch.compile"),
        ([1], None, "'sampleattn' must be an object of options, got list"),
        ({}, "tau=1", "SAMPLEATTN_VLLM must be a JSON object of options, got 'tau=1'"),
        ({}, "[1]", "SAMPLEATTN_VLLM must be a JSON object"),
    ],
)
def test_bad_options_are_named(monkeypatch, given, environment, message):
    if environment is not None:
        monkeypatch.setenv(options.ENVIRONMENT, environment)
    with pytest.raises((ValueError, TypeError), match=message):
        options.options_of({"sampleattn": given})


@pytest.mark.parametrize("q_len, q_offset, block_q, block_k", [(700, 0, 128, 128), (300, 77, 64, 32)])
def test_density_is_of_the_blocks_that_causality_allows(q_len, q_offset, block_q, block_k):
    everything = causal_blocks(q_len, q_len + q_offset, q_offset, block_q, block_k, torch.device("cpu"))
    allowed = allowed_blocks(q_len, q_offset, 3, block_q, block_k)
    assert allowed == 3 * int(everything.sum())
    counters = Counters()
    counters.observe(pack_bits(everything).expand(1, 3, -1, -1), allowed)
    counters.observe(pack_bits(torch.zeros_like(everything)).expand(1, 3, -1, -1), allowed)
    counters.sampled(q_len)
    counters.failed(2)
    read = counters.read()
    assert (read.prefills, read.tokens, read.density, read.failures) == (1, q_len, 0.5, 2)


def test_the_log_gets_a_line_when_there_is_something_new_and_not_too_often(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("sa_compile.serving.vllm.counters.time.monotonic", lambda: now[0])
    counters, said = Counters(), []
    counters.say(said.append)
    assert said == []
    for later in (0.0, 1.0, 10.0):
        now[0] += later
        counters.sampled(5000)
        counters.say(said.append)
    counters.say(said.append)
    assert [line.split(" tokens")[0] for line in said] == ["1 prefills of 5000", "3 prefills of 15000"]
