"""The settings that are tried: what the harness measures is what the backend would run, and is timed."""

import pytest
import torch

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels.shared.blocks import unpack_bits
from sa_compile.lab.eval.rules import parse_rule
from sa_compile.lab.tune.space import BLOCKS, FAMILIES, Candidate, candidates
from sa_compile.methods.base import axis

EVERY = list(candidates(FAMILIES, [(32, 32), (32, 16)]))


@pytest.mark.parametrize("candidate", EVERY, ids=lambda c: f"{c.rule} {c.blocks[0]}x{c.blocks[1]}")
def test_rule_and_ops_of_a_setting_keep_the_same_blocks(candidate):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 300, 16, generator=generator)
    key = torch.randn(1, 2, 300, 16, generator=generator)
    key[:, :, ::37] *= 6  # a few columns stand out
    block_q, block_k = candidate.blocks
    by_rule = parse_rule(candidate.rule).select(query, key, block_q=block_q, block_k=block_k)
    attention = prefill.CausalAttention(query, key, key, 16**-0.5)
    by_ops = prefill.keep(attention, candidate.config).block_mask
    assert torch.equal(unpack_bits(by_rule, 300 // block_k), unpack_bits(by_ops, 300 // block_k))
    assert (candidate.config.block_q, candidate.config.block_k) == candidate.blocks


def test_settings_are_distinct_and_hold_the_defaults():
    tried = list(candidates(FAMILIES, BLOCKS))
    assert len({(c.rule, c.blocks) for c in tried}) == len(tried)
    assert SampleAttentionConfig() in [c.config for c in tried]


def test_settings_vary_what_selection_costs_and_what_it_leaves_out():
    adaptive = [c.config for c in candidates(FAMILIES, BLOCKS[:1]) if c.config.method == "adaptive"]
    varied = {name: {getattr(c, name) for c in adaptive if c.budget < 1} for name in ("budget_rows", "rest")}
    assert varied == {"budget_rows": {8, 16, 32}, "rest": {0.0, 0.5}}
    assert len({c.budget_tau for c in adaptive}) > 3 and {c.landmarks for c in adaptive} == {7, 15}
    peaks = [c for c in adaptive if c.peak < 1]
    assert {c.peak for c in peaks} == {0.1, 0.2, 0.3} and {c.landmarks for c in peaks} == {7, 15}
    assert {c.budget_rows for c in peaks} == {16, 32} and len(peaks) == 8


def test_settings_that_cost_the_same_selection_share_a_name_and_others_do_not():
    names = {(c.config.method, c.config.chunk_n, c.config.r_row, c.blocks): c.timed_as for c in EVERY}
    assert len(set(names.values())) == len(names)


def test_a_candidates_rule_says_what_its_options_say():
    chunked = next(family for family in FAMILIES if family.method == "chunked")
    config = SampleAttentionConfig(
        method="chunked", alpha_c=0.8, alpha_s=0.9, chunk_n=4, sample_rows=64, block_q=64, block_k=64
    )
    rule = parse_rule(Candidate(chunked, config).rule)
    assert (rule.alpha_c, rule.alpha_s, rule.chunk_n, rule.sample_rows, rule.window) == (0.8, 0.9, 4, 64, 2)


def test_a_further_value_is_one_entry():
    assert axis("chunk_n", 1, 2) == ({"chunk_n": 1}, {"chunk_n": 2})


def test_costs_from_before_the_budget_are_of_selection_without_one():
    adaptive = next(family for family in FAMILIES if family.method == "adaptive")
    config = SampleAttentionConfig(method="adaptive", peak=1.0, landmarks=7, budget=1.0, means=True)
    before = adaptive.timed_as({"tau": 0.2, "landmarks": 7}, "128x128")
    assert before == Candidate(adaptive, config).timed_as == "adaptive landmarks=7 128x128"
    rule = vars(parse_rule(Candidate(adaptive, SampleAttentionConfig(peak=1.0, landmarks=15)).rule))
    del rule["peak"]
    assert adaptive.timed_as(rule, "128x128") == "adaptive landmarks=15 rows=32 rest=True 128x128"


def test_a_selection_by_peaks_is_timed_by_itself_whatever_the_peak():
    adaptive = next(family for family in FAMILIES if family.method == "adaptive")
    names = {
        peak: Candidate(adaptive, SampleAttentionConfig(peak=peak, landmarks=7)).timed_as
        for peak in (0.1, 0.2, 1.0)
    }
    assert names[0.1] == names[0.2] == "adaptive landmarks=7 peak=True rows=32 rest=True 128x128"
    assert names[1.0] == "adaptive landmarks=7 rows=32 rest=True 128x128"
