"""select_peaks against its oracle, and the laws of the selection."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import SELECTION as BASE
from support.attention_inputs import SELECTION_CASES, Case
from support.landmark_selection import (
    NEAR,
    SMALL,
    assert_one_sink_is_that_of_all_heads,
    assert_peaks_equal_the_oracles,
    assert_the_least_sink_is_none_and_large_ones_leave,
    causal_and_visible,
    sharpened,
    sinks_of,
    unpacked,
)
from support.landmark_selection import drawn as drawn_call
from support.landmark_selection import selection as selection_call

from sa_compile.kernels import ops
from sa_compile.kernels.defaults import ADAPTIVE_PEAK, PEAK_BLOCKS
from sa_compile.kernels.select_peaks import eager as peaks_eager
from sa_compile.kernels.select_peaks import reference as peaks_reference
from sa_compile.kernels.select_peaks.op import Arguments
from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared import eager as shared_eager

CASES = [
    *SELECTION_CASES,
    pytest.param(BASE.but(block_q=16, block_k=64), id="keys-wider-than-rows"),
    pytest.param(
        BASE.but(batch=2, heads=4, kv_heads=2, q_len=130, kv_len=560, q_offset=430, segments="left_padding"),
        id="first-eight-blocks-of-padding",
    ),
]
SELECT = [
    pytest.param(lambda given: ops.select_peaks_op(*given), id="op"),
    pytest.param(peaks_eager.select_peaks, id="eager"),
]


def selection(case, inputs, *forced, peak=0.2, **options):
    """Arguments of select_peaks."""
    return selection_call(Arguments, case, inputs, peak, *forced, **options)


def drawn(seed, q_offset, block, padding):
    """With enough key blocks for normal distributions of eight."""
    return drawn_call(Arguments, 0.2, seed, q_offset, block, padding, q_len=300)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("forced", [(True, 2), (False, 1), (True, 4)], ids=["default", "least", "wide"])
@pytest.mark.parametrize("sinks", [False, True], ids=["keys-alone", "sinks"])
def test_logarithms_equal_the_oracles(case, forced, sinks):
    given = selection(case, sharpened(case), *forced)
    given = given._replace(sinks=sinks_of(case) if sinks else None)
    expected, _, allowed = peaks_reference.peaks(given)
    found = peaks_eager.PeakBlocks(given).peaks().double()
    torch.testing.assert_close(found[allowed], expected[allowed], rtol=0, atol=NEAR / 5)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sinks", [False, True], ids=["keys-alone", "sinks"])
def test_a_block_is_kept_up_to_its_own_share(select, case, sinks):
    """At shares just below and above those of the oracle, so that no part of a row's total can be missing."""
    given = selection(case, sharpened(case), False, 1)
    given = given._replace(sinks=sinks_of(case) if sinks else None)
    oracle = peaks_reference.peaks(given)
    found = oracle[0]
    levels = found[found > -torch.inf].quantile(torch.linspace(0.02, 0.98, 12).double())
    for level in (*(levels - 2 * NEAR).tolist(), *(levels + 2 * NEAR).tolist()):
        at_level = given._replace(peak=math.exp(level))
        assert_peaks_equal_the_oracles(unpacked(select(at_level), case), at_level, oracle)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("forced", [(True, 2), (False, 1)], ids=["default", "least"])
@pytest.mark.parametrize("last_rows", [0, 40])
@pytest.mark.parametrize("peak", [0.0, 0.02, 0.2, 0.6])
def test_blocks_equal_the_oracle(select, case, forced, last_rows, peak):
    given = selection(case, sharpened(case), *forced, peak=peak, last_rows=last_rows)
    assert_peaks_equal_the_oracles(unpacked(select(given), case), given)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", CASES)
def test_blocks_equal_the_oracle_with_sinks(select, case):
    given = selection(case, sharpened(case), peak=0.1, last_rows=40)._replace(sinks=sinks_of(case))
    assert_peaks_equal_the_oracles(unpacked(select(given), case), given)


@pytest.mark.parametrize("select", SELECT)
def test_one_sink_is_that_of_all_heads(select):
    assert_one_sink_is_that_of_all_heads(select, selection(BASE, sharpened(BASE), peak=0.3))


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", CASES)
def test_a_sink_of_minus_infinity_is_none_and_a_large_one_leaves_what_is_forced(select, case):
    given = selection(case, sharpened(case))
    _, forced, _ = peaks_reference.peaks(given)
    assert_the_least_sink_is_none_and_large_ones_leave(forced, select, given, case)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("landmarks", [1, 2, 7, 16], ids=lambda count: f"{count}-landmarks")
def test_any_number_of_landmarks_from_one_on(select, landmarks):
    """Where it is all 16 keys of a block, normal distributions have none."""
    case = BASE.but(batch=2, segments="left_padding")
    given = selection(case, sharpened(case), landmarks=landmarks)
    assert_peaks_equal_the_oracles(unpacked(select(given), case), given)


@pytest.mark.parametrize("select", SELECT)
def test_a_prompt_of_padding_keeps_nothing(select):
    case = BASE.but(batch=2)
    inputs = sharpened(case)
    inputs.key_segment = torch.zeros(2, case.kv_len, dtype=torch.int32)
    inputs.key_segment[1] = -1
    given = selection(case, inputs, last_rows=20)
    kept = unpacked(select(given), case)
    assert torch.equal(kept, peaks_reference.select_peaks(given)) and not kept[1].any()


@pytest.mark.parametrize("select", SELECT)
def test_long_prompts_in_groups_of_rows_give_the_same_blocks(select, monkeypatch):
    case = BASE.but(q_len=600, kv_len=600, batch=2, segments="left_padding")
    given = selection(case, sharpened(case))
    whole = select(given)
    monkeypatch.setattr(shared_eager, "SCORE_BYTES", 1)
    assert torch.equal(select(given), whole)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("kv_len", [7 * 16, 8 * 16, 15 * 16, 16 * 16])
def test_eight_whole_blocks_before_its_own_count_in_a_rows_total(select, kv_len):
    """What a landmark's share has to be is known: all keys score 0 but one, the last key before the row."""
    blocks_before = kv_len // 16
    key = torch.zeros(1, 1, kv_len + 1, 1)
    key[0, 0, kv_len - 1] = 5.0
    query = torch.ones(1, 1, 1, 1)
    terms = ops.block_representatives(key, block_k=16, landmarks=1)
    eights = PEAK_BLOCKS * 15 * (blocks_before // PEAK_BLOCKS)  # 15 of 16 keys are no landmarks
    own_and_first = 2.0
    share = math.exp(5.0) / (own_and_first + eights)
    for peak, expected in ((0.999 * share, True), (1.001 * share, False)):
        given = Arguments(query, key, *terms, None, 1.0, kv_len, 16, 16, peak, True, 1, 0)
        kept = blocks.unpack_bits(select(given), blocks_before + 1)
        assert kept[0, 0, 0, blocks_before - 1] == expected


@pytest.mark.parametrize("select", SELECT)
def test_a_spread_makes_a_total_larger_but_by_no_more_than_its_keys(select):
    """Eight blocks of one other key each, at 1 or -1: together a spread of 1 about 0."""
    key = torch.zeros(1, 1, 17, 1)
    means = torch.tensor([1.0, -1.0] * 4)
    terms = torch.zeros(1, 1, 2, 9, 1), torch.zeros(1, 1, 2, 9), torch.zeros(1, 1, 2, 9)
    terms[0][0, 0, 0, :8, 0] = means
    key = torch.zeros(1, 1, 9 * 16, 1)
    for size, boost in ((1.0, 0.5), (1.5, 1.125), (9.0, math.log(8))):
        total = 1 + 1 + 8 * math.exp(boost)  # its own key, the first block's landmark, and eight keys
        for factor, expected in ((0.999, True), (1.001, False)):
            peak = factor / total
            query = torch.full((1, 1, 1, 1), size)
            given = Arguments(query, key, *terms, None, 1.0, 8 * 16, 16, 16, peak, False, 1, 0)
            assert blocks.unpack_bits(select(given), 9)[0, 0, 0, :8].tolist() == [expected] * 8


@given(**SMALL, peaks=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)))
@settings(max_examples=30, deadline=None)
def test_less_is_kept_as_peak_grows_and_what_is_forced_stays(seed, q_offset, block, padding, peaks):
    case, given = drawn(seed, q_offset, block, padding)

    def kept(peak):
        return unpacked(ops.select_peaks_op(*given._replace(peak=peak)), case)

    low, high = map(kept, sorted(peaks))
    assert not (high & ~low).any()
    _, forced, _ = peaks_reference.peaks(given)
    assert not (forced & ~high).any()
    only_forced = kept(1e30)
    assert torch.equal(only_forced, forced)


@given(**SMALL, sinks=st.tuples(st.floats(-5.0, 10.0), st.floats(-5.0, 10.0)))
@settings(max_examples=30, deadline=None)
def test_less_is_kept_as_sinks_grow(seed, q_offset, block, padding, sinks):
    case, given = drawn(seed, q_offset, block, padding)
    none = unpacked(ops.select_peaks_op(*given), case)
    low, high = (
        unpacked(ops.select_peaks_op(*given._replace(sinks=torch.tensor([sink]))), case)
        for sink in sorted(sinks)
    )
    assert not (high & ~low).any() and not (low & ~none).any()


@given(**SMALL)
@settings(max_examples=15, deadline=None)
def test_peak_zero_keeps_exactly_what_causality_and_padding_allow(seed, q_offset, block, padding):
    case, given = drawn(seed, q_offset, block, padding)
    kept = unpacked(ops.select_peaks_op(*given._replace(peak=0.0)), case)
    assert torch.equal(kept, causal_and_visible(case, given.key_segment).expand_as(kept))


@given(seed=st.integers(0, 1000), permutation=st.permutations(range(3)))
@settings(max_examples=10, deadline=None)
def test_batches_and_heads_do_not_interact(seed, permutation):
    inputs = sharpened(Case(batch=3, heads=3, kv_heads=3, q_len=250, kv_len=250), seed)
    index = torch.tensor(permutation)

    def run(query, key):
        terms = ops.block_representatives(key, block_k=16)
        return ops.select_peaks(query, key, terms, block_q=16, block_k=16, peak=0.1)

    mask = run(inputs.query, inputs.key)
    assert torch.equal(run(inputs.query[index], inputs.key[index]), mask[index])
    assert torch.equal(run(inputs.query[:, index], inputs.key[:, index]), mask[:, index])


@pytest.mark.parametrize("select", SELECT)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 17))
@settings(max_examples=15, deadline=None)
def test_later_tokens_do_not_matter_to_earlier_query_blocks(select, seed, cut):
    inputs = sharpened(Case(q_len=288, kv_len=288), seed)
    query, key = inputs.query.clone(), inputs.key.clone()
    query[:, :, 16 * cut :], key[:, :, 16 * cut :] = 5.0, -3.0

    def run(query, key):
        terms = ops.block_representatives(key, block_k=16)
        return select(Arguments(query, key, *terms, None, 0.2, 0, 16, 16, 0.1, True, 2, 0))[:, :, :cut]

    assert torch.equal(run(query, key), run(inputs.query, inputs.key))


def test_queries_in_two_chunks_on_a_cache_choose_what_one_prefill_chooses():
    inputs = sharpened(Case(q_len=320, kv_len=320))
    whole_terms = ops.block_representatives(inputs.key, block_k=16)
    options = {"block_q": 16, "block_k": 16, "peak": 0.1}
    whole = ops.select_peaks(inputs.query, inputs.key, whole_terms, **options)
    late = ops.select_peaks(inputs.query[:, :, 192:], inputs.key, whole_terms, q_offset=192, **options)
    key = inputs.key[:, :, :192]
    early = ops.select_peaks(
        inputs.query[:, :, :192], key, ops.block_representatives(key, block_k=16), **options
    )
    assert torch.equal(torch.cat((early, late), 2), whole)


@pytest.mark.parametrize("select", SELECT)
def test_one_row_that_looks_for_a_block_is_enough_to_keep_it(select):
    torch.manual_seed(0)
    key = torch.randn(1, 1, 2048, 64)
    query = 4 * key[:, :, :1] + 0.1 * torch.randn(1, 1, 2048, 64)  # all rows look at the sink
    needle, row = 300, 1900
    key[0, 0, needle] *= 1.5  # what is to be found again stands out: it is one of the landmarks
    terms = ops.block_representatives(key)

    def kept(query, peak=ADAPTIVE_PEAK):
        given = Arguments(query, key, *terms, None, 0.125, 0, 128, 128, peak, True, 2, 0)
        return blocks.unpack_bits(select(given), 16)[0, 0]

    before = kept(query)
    assert before.sum() == 16 + 15 + 14  # diagonals and sink
    query[0, 0, row] = 4 * key[0, 0, needle]
    assert kept(query)[row // 128, needle // 128]
    # Other blocks' landmarks count nothing in a total, so a share may be of more than all.
    found = kept(query, peak=1e6) ^ before
    assert found.nonzero().tolist() == [[row // 128, needle // 128]]


def test_the_ops_defaults_are_the_settings_that_were_chosen():
    key = torch.randn(1, 1, 512, 8)
    terms = ops.block_representatives(key)
    chosen = ops.select_peaks(key, key, terms)
    assert torch.equal(chosen, ops.select_peaks(key, key, terms, peak=ADAPTIVE_PEAK))
