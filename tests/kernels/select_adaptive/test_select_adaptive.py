"""select_adaptive against its oracle, and the laws of the selection."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import SELECTION as BASE
from support.attention_inputs import SELECTION_CASES, Case
from support.implementations import reference
from support.landmark_selection import (
    SMALL,
    assert_one_sink_is_that_of_all_heads,
    assert_shares_equal_the_oracles,
    assert_the_least_sink_is_none_and_large_ones_leave,
    causal_and_visible,
    sharpened,
    sinks_of,
    unpacked,
)
from support.landmark_selection import drawn as drawn_call
from support.landmark_selection import selection as selection_call

from sa_compile.kernels import ops
from sa_compile.kernels.defaults import ADAPTIVE_LANDMARKS, ADAPTIVE_TAU
from sa_compile.kernels.select_adaptive import eager as adaptive_eager
from sa_compile.kernels.select_adaptive import reference as adaptive_reference
from sa_compile.kernels.select_adaptive.op import Arguments
from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared import eager as shared_eager

CASES = [
    *SELECTION_CASES,
    pytest.param(BASE.but(block_q=16, block_k=64), id="keys-wider-than-rows"),
]
SELECT = [
    pytest.param(lambda given: ops.select_adaptive_op(*given), id="op"),
    pytest.param(adaptive_eager.select_adaptive, id="eager"),
]
# Shares are sums of fp32 exponentials of fp32 products; the oracle's are float64.
TOLERANCE = {"rtol": 2e-5, "atol": 1e-7}


def selection(case, inputs, *forced, tau=0.2, **options):
    """Arguments of select_adaptive."""
    return selection_call(Arguments, case, inputs, tau, *forced, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("forced", [(True, 2), (False, 1), (True, 4)], ids=["default", "least", "wide"])
@pytest.mark.parametrize("sinks", [False, True], ids=["keys-alone", "sinks"])
def test_shares_equal_the_oracle(case, forced, sinks):
    given = selection(case, sharpened(case), *forced)
    given = given._replace(sinks=sinks_of(case) if sinks else None)
    expected, *_ = adaptive_reference.squared_shares(given)
    shares = adaptive_eager.AdaptiveBlocks(given).squared_shares()
    torch.testing.assert_close(shares.double(), expected, **TOLERANCE)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("forced", [(True, 2), (False, 1)], ids=["default", "least"])
@pytest.mark.parametrize("last_rows", [0, 40])
@pytest.mark.parametrize("tau", [0.0, 0.05, 0.2, 0.6])
def test_blocks_equal_the_oracle(select, case, forced, last_rows, tau):
    given = selection(case, sharpened(case), *forced, tau=tau, last_rows=last_rows)
    assert_shares_equal_the_oracles(unpacked(select(given), case), given)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", CASES)
def test_blocks_equal_the_oracle_with_sinks(select, case):
    given = selection(case, sharpened(case), tau=0.1, last_rows=40)._replace(sinks=sinks_of(case))
    assert_shares_equal_the_oracles(unpacked(select(given), case), given)


@pytest.mark.parametrize("select", SELECT)
def test_one_sink_is_that_of_all_heads(select):
    assert_one_sink_is_that_of_all_heads(select, selection(BASE, sharpened(BASE), tau=0.5))


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", CASES)
def test_a_sink_of_minus_infinity_is_none_and_a_large_one_leaves_what_is_forced(select, case):
    given = selection(case, sharpened(case))
    _, forced, _ = adaptive_reference.squared_shares(given)
    assert_the_least_sink_is_none_and_large_ones_leave(forced, select, given, case)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("landmarks", [0, 1, 2, 3, 4, 16], ids=lambda count: f"{count}-landmarks")
def test_any_number_of_landmarks_makes_up_to_three_groups(select, landmarks):
    case = BASE.but(batch=2, segments="left_padding")
    given = selection(case, sharpened(case), landmarks=landmarks)
    assert_shares_equal_the_oracles(unpacked(select(given), case), given)


@pytest.mark.parametrize("select", SELECT)
def test_long_prompts_in_groups_of_rows_give_the_same_blocks(select, monkeypatch):
    case = BASE.but(q_len=600, kv_len=600, batch=2, segments="left_padding")
    given = selection(case, sharpened(case))
    whole = select(given)
    monkeypatch.setattr(shared_eager, "SCORE_BYTES", 1)
    assert torch.equal(select(given), whole)


def test_landmarks_make_the_estimate_exact_where_every_key_is_one():
    case = BASE.but(q_len=96, kv_len=96)
    inputs = sharpened(case)
    terms = reference.block_representatives(inputs.key, None, 3, 3)  # each is a group of its own
    rest = (None, case.scale, 0, 32, 3, 0.2, True, 2, 0)
    squares, *_ = adaptive_reference.squared_shares(Arguments(inputs.query, inputs.key, *terms, *rest))
    scores = case.scale * inputs.query.double() @ inputs.key.double().repeat_interleave(2, 1).mT
    visible = torch.ones(96, 96, dtype=torch.bool).tril()
    mass = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    exact = mass.unflatten(-1, (-1, 3)).square().sum(-1).unflatten(2, (-1, 32)).sum(3)
    before_own = (
        torch.arange(32) < 32 * torch.arange(3)[:, None] // 3
    )  # the others' keys are scored themselves
    torch.testing.assert_close(squares, exact.where(before_own, 0.0), rtol=1e-5, atol=1e-9)


def test_of_a_group_of_landmarks_the_one_that_a_row_looks_for_most_counts():
    key = torch.eye(8)[[0, 1, 2, 3, 4, 5, 0, 0]][None, None]  # landmarks 1 to 6 of the first block of six
    terms = torch.zeros(1, 1, 7, 2, 8), torch.full((1, 1, 7, 2), -torch.inf), torch.zeros(1, 1, 7, 2)
    terms[0][0, 0, 1:, 0], terms[1][0, 0, 1:, 0] = key[0, 0, :6], 0.0
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 0.0, 0.0])
    query = scores.expand(1, 1, 1, 8)
    masses = torch.tensor([4.0, 2.0, 3.0]).exp()  # of landmarks 1 and 4, 2 and 5, 3 and 6
    own = torch.tensor([1.0, 1.0]).exp()  # the keys 6 and 7, which are scored themselves
    expected = (masses / (masses.sum() + own.sum())).square().sum()
    given = Arguments(query, key, *terms, None, 1.0, 7, 1, 6, 0.2, True, 1, 0)
    squares, *_ = adaptive_reference.squared_shares(given)
    torch.testing.assert_close(squares[0, 0, 0], torch.stack((expected.double(), squares.new_tensor(0.0))))
    found = adaptive_eager.AdaptiveBlocks(given).squared_shares()
    torch.testing.assert_close(found.double(), squares, **TOLERANCE)


@given(seed=st.integers(0, 1000), bias=st.sampled_from([0.0, 30.0]), spike=st.sampled_from([1.0, 20.0]))
@settings(max_examples=30, deadline=None)
def test_bytes_are_off_by_half_a_step_and_what_keys_have_in_common_is_exact(seed, bias, spike):
    generator = torch.Generator().manual_seed(seed)
    rows, keys = torch.randn(5, 64, generator=generator), torch.randn(4, 7, 64, generator=generator)
    rows[:, 3] *= spike
    common = bias * torch.randn(64, generator=generator)
    keys = keys + common
    exists = torch.rand(4, 7, generator=generator) < 0.8
    rows, keys, common = (x.bfloat16().double() for x in (rows, keys, common))
    found = adaptive_reference.byte_product(rows, keys, exists, common)
    exact = adaptive_reference.exact_product(rows, keys, exists, common)
    differences = (keys - common).masked_fill(~exists[..., None], 0.0)
    row_step = rows.abs().amax(-1)[:, None, None] / 127
    key_step = differences.abs().amax((0, 2)) / 127
    bound = row_step / 2 * (differences.abs().sum(-1) + 32 * key_step)
    bound = bound + key_step / 2 * rows.abs().sum(-1)[:, None, None]
    error = (found - exact).abs()[:, exists]
    assert (error <= 1.001 * bound[:, exists]).all()
    assert torch.equal(adaptive_reference.byte_product(0 * rows, keys, exists, common), 0 * exact)


def drawn(*given):
    return drawn_call(Arguments, 0.2, *given)


@given(**SMALL, taus=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)))
@settings(max_examples=30, deadline=None)
def test_less_is_kept_as_tau_grows_and_what_is_forced_stays(seed, q_offset, block, padding, taus):
    case, given = drawn(seed, q_offset, block, padding)

    def kept(tau):
        return unpacked(ops.select_adaptive_op(*given._replace(tau=tau)), case)

    low, high = map(kept, sorted(taus))
    assert not (high & ~low).any()
    _, forced, _ = adaptive_reference.squared_shares(given)
    assert not (forced & ~high).any()
    only_forced = kept(1e3)
    assert torch.equal(only_forced, forced)


@given(**SMALL, sinks=st.tuples(st.floats(-5.0, 10.0), st.floats(-5.0, 10.0)))
@settings(max_examples=30, deadline=None)
def test_less_is_kept_as_sinks_grow(seed, q_offset, block, padding, sinks):
    case, given = drawn(seed, q_offset, block, padding)
    none = unpacked(ops.select_adaptive_op(*given), case)
    low, high = (
        unpacked(ops.select_adaptive_op(*given._replace(sinks=torch.tensor([sink]))), case)
        for sink in sorted(sinks)
    )
    assert not (high & ~low).any() and not (low & ~none).any()


@given(**SMALL)
@settings(max_examples=15, deadline=None)
def test_tau_zero_keeps_exactly_what_causality_and_padding_allow(seed, q_offset, block, padding):
    case, given = drawn(seed, q_offset, block, padding)
    kept = unpacked(ops.select_adaptive_op(*given._replace(tau=0.0)), case)
    allowed = causal_and_visible(case, given.key_segment)
    assert torch.equal(kept, allowed.expand_as(kept))


@given(seed=st.integers(0, 1000), permutation=st.permutations(range(3)))
@settings(max_examples=10, deadline=None)
def test_batches_and_heads_do_not_interact(seed, permutation):
    inputs = sharpened(Case(batch=3, heads=3, kv_heads=3, q_len=150, kv_len=150), seed)
    index = torch.tensor(permutation)

    def run(query, key):
        terms = ops.block_representatives(key, block_k=16)
        return ops.select_adaptive(query, key, terms, block_q=16, block_k=16, tau=0.1)

    mask = run(inputs.query, inputs.key)
    assert torch.equal(run(inputs.query[index], inputs.key[index]), mask[index])
    assert torch.equal(run(inputs.query[:, index], inputs.key[:, index]), mask[:, index])


@given(seed=st.integers(0, 1000), cut=st.integers(1, 8))
@settings(max_examples=15, deadline=None)
def test_later_tokens_do_not_matter_to_earlier_query_blocks(seed, cut):
    inputs = sharpened(Case(q_len=144, kv_len=144), seed)
    query, key = inputs.query.clone(), inputs.key.clone()
    query[:, :, 16 * cut :], key[:, :, 16 * cut :] = 5.0, -3.0

    def run(query, key):
        terms = ops.block_representatives(key, block_k=16)
        return ops.select_adaptive(query, key, terms, block_q=16, block_k=16, tau=0.1)[:, :, :cut]

    assert torch.equal(run(query, key), run(inputs.query, inputs.key))


def test_queries_in_two_chunks_on_a_cache_choose_what_one_prefill_chooses():
    inputs = sharpened(Case(q_len=192, kv_len=192))
    whole_terms = ops.block_representatives(inputs.key, block_k=16)
    options = {"block_q": 16, "block_k": 16, "tau": 0.1}
    whole = ops.select_adaptive(inputs.query, inputs.key, whole_terms, **options)
    late = ops.select_adaptive(inputs.query[:, :, 64:], inputs.key, whole_terms, q_offset=64, **options)
    key = inputs.key[:, :, :64]
    early = ops.select_adaptive(
        inputs.query[:, :, :64], key, ops.block_representatives(key, block_k=16), **options
    )
    assert torch.equal(torch.cat((early, late), 2), whole)


def test_one_row_that_looks_for_a_block_is_enough_to_keep_it():
    """In a sum over the query block's rows it would be 1 / 128 of the attention."""
    torch.manual_seed(0)
    key = torch.randn(1, 1, 1024, 64)
    query = 4 * key[:, :, :1] + 0.1 * torch.randn(1, 1, 1024, 64)  # all rows look at the sink
    needle, row = 300, 900
    key[0, 0, needle] *= 1.5  # what is to be found again stands out: it is one of the landmarks

    def kept(query):
        mask = ops.select_adaptive(query, key, ops.block_representatives(key))
        return blocks.unpack_bits(mask, 8)[0, 0]

    assert not kept(query)[row // 128, needle // 128]
    query[0, 0, row] = 4 * key[0, 0, needle]
    expected = kept(query)
    assert expected[row // 128, needle // 128]
    assert expected.sum() == 8 + 7 + 6 + 1  # diagonals, sink, and this block


def test_a_block_that_every_key_of_which_gets_the_same_is_left_to_its_mean():
    """However much attention it gets: nothing is lost if its mean stands for it."""
    torch.manual_seed(0)
    key, query = torch.randn(1, 1, 1024, 64), torch.randn(1, 1, 1024, 64)
    query[..., 0] = 8.0
    key[..., 0] = 0.0
    key[:, :, 256:384] = 0.0
    key[:, :, 256:384, 0] = 16.0  # two orders of magnitude more than any other block has
    terms = ops.block_representatives(key)
    rest = (None, 64**-0.5, 0, 128, 128, 0.2, True, 2, 0)
    squares, *_ = adaptive_reference.squared_shares(Arguments(query, key, *terms, *rest))
    # 128 rows give each of 128 keys 1 / 128: a 2-norm of 1. Were it one key, it would be sqrt(128).
    # Twelve of the fifteen landmarks do not count beside those that a row looks for as much.
    assert torch.allclose(squares[0, 0, 4:, 2], squares.new_tensor(128 / 116), rtol=1e-3)
    key[:, :, 257:384, 0] = 0.0
    terms = ops.block_representatives(key)
    squares, *_ = adaptive_reference.squared_shares(Arguments(query, key, *terms, *rest))
    assert (squares[0, 0, 4:, 2] > 100).all()


def test_the_ops_defaults_are_the_settings_that_were_chosen():
    key = torch.randn(1, 1, 256, 8)
    representatives, _, _ = ops.block_representatives(key)
    assert representatives.shape[2] == 1 + ADAPTIVE_LANDMARKS
    terms = ops.block_representatives(key)
    chosen = ops.select_adaptive(key, key, terms)
    assert torch.equal(chosen, ops.select_adaptive(key, key, terms, tau=ADAPTIVE_TAU))
