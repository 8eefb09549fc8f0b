"""Rows of right-padded prompts: last rows and sampled ones count from each prompt's end, not the tensor's."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.implementations import eager, reference
from support.query_stride import Ops

from sa_compile.kernels import ops
from sa_compile.kernels.select_adaptive import eager as adaptive_eager
from sa_compile.kernels.select_adaptive.op import Arguments as Adaptive
from sa_compile.kernels.select_peaks import eager as peaks_eager
from sa_compile.kernels.select_peaks.op import Arguments as Peaks
from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared import reference as shared_reference
from sa_compile.kernels.shared.rows import block_stops, blocks_of_last_rows, row_ends, sampled_rows
from sa_compile.lab.eval.rules import parse_rule

CPU = torch.device("cpu")
Q_LEN, SCALE, LANDMARKS = 90, 0.3, 3
# Sums of the same numbers in another order; shares nearly at tau may change sides.
NEAR = {"rtol": 1e-4, "atol": 1e-6}


@dataclass
class Batch:
    """Two prompts of ``Q_LEN`` rows behind ``q_offset`` keys, padded on either side; padding is NaN."""

    query: torch.Tensor
    key: torch.Tensor
    segment: torch.Tensor
    ends: list[int]
    q_offset: int

    def alone(self, b):
        """Query, key and segment of one prompt without its padding on the right."""
        end = self.ends[b]
        keys = end + self.q_offset
        query, key = self.query[b : b + 1, :, :end], self.key[b : b + 1, :, :keys]
        return query, key, self.segment[b : b + 1, :keys]


def batch_of(lefts, rights, q_offset, seed):
    generator = torch.Generator().manual_seed(seed)
    kv_len = Q_LEN + q_offset
    query = 2 * torch.randn(2, 2, Q_LEN, 16, generator=generator)
    key = torch.randn(2, 1, kv_len, 16, generator=generator)
    place = torch.arange(kv_len)
    rights = [min(right, Q_LEN) for right in rights]
    hidden = torch.stack(
        [(place < left) | (place >= kv_len - right) for left, right in zip(lefts, rights, strict=True)]
    )
    own = ~hidden[:, q_offset:]
    ends = [max((row + 1 for row in range(Q_LEN) if own[b, row]), default=0) for b in range(2)]
    return Batch(query, key.masked_fill(hidden[:, None, :, None], torch.nan), -hidden.int(), ends, q_offset)


BATCHES = st.builds(
    batch_of,
    lefts=st.tuples(st.sampled_from([0, 0, 25]), st.sampled_from([0, 25])),
    rights=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    q_offset=st.sampled_from([0, 0, 37]),
    seed=st.integers(0, 1000),
)
BLOCKS = st.sampled_from([(16, 16), (32, 16), (16, 32)])


def of_prompt(kept, end, q_offset, block_q, block_k):
    """Of bool [Hq, n_query_blocks, n_key_blocks] the prompt's own blocks; behind its keys is none."""
    n_q, n_k = -(-end // block_q), -(-(end + q_offset) // block_k)
    assert not kept[:, :n_q, n_k:].any()
    return kept[:, :n_q, :n_k]


def near_tau(given):
    squares = adaptive_eager.AdaptiveBlocks(given).squared_shares()
    return torch.isclose(squares, torch.tensor(given.tau**2), rtol=NEAR["rtol"], atol=0)


def near_peak(given):
    return (peaks_eager.PeakBlocks(given).peaks() - math.log(given.peak)).abs() <= NEAR["rtol"]


def by_landmarks(op, record, near):
    """The implementations of a selection by landmarks, its record, and which blocks may change sides."""

    def of_oracle(*given):
        return blocks.pack_bits(getattr(reference, op)(*given))

    for name, select in (("op", getattr(Ops(), op)), ("eager", getattr(eager, op)), ("oracle", of_oracle)):
        yield pytest.param(select, record, near, id=f"{op}-{name}")


BY_LANDMARKS = [
    *by_landmarks("select_adaptive", Adaptive, near_tau),
    *by_landmarks("select_peaks", Peaks, near_peak),
]
CHUNKED = [
    pytest.param(ops.sample_scores_op, ops.select_blocks_op, ops.attention_mass_op, id="op"),
    pytest.param(eager.sample_scores, eager.select_blocks, eager.attention_mass, id="eager"),
    pytest.param(reference.sample_scores, reference.select_blocks, reference.attention_mass, id="oracle"),
]


@pytest.mark.parametrize("select, record, near", BY_LANDMARKS)
@given(
    batch=BATCHES,
    block=BLOCKS,
    last_rows=st.sampled_from([0, 1, 20, 500]),
    least=st.sampled_from([0.5, 1.0]),
    forced=st.sampled_from([(True, 2), (False, 1)]),
)
@settings(max_examples=15, deadline=None)
def test_landmarks_keep_for_a_padded_prompt_what_they_keep_for_it_alone(
    select, record, near, batch, block, last_rows, least, forced
):
    where = (SCALE, batch.q_offset, *block)

    def kept(query, key, segment):
        terms = ops.block_representatives_op(key, segment, block[1], LANDMARKS)
        given = record(query, key, *terms, segment, *where, least, *forced, last_rows)
        return blocks.unpack_bits(select(*given), -(-key.shape[2] // block[1])), given

    found, _ = kept(batch.query, batch.key, batch.segment)
    for b, end in enumerate(batch.ends):
        if end == 0:
            continue
        alone, given = kept(*batch.alone(b))
        either = near(given)[0]
        own = of_prompt(found[b], end, batch.q_offset, *block)
        assert torch.equal(own | either, alone[0] | either)


@pytest.mark.parametrize("sample, select, mass", CHUNKED)
@given(
    batch=BATCHES,
    block=BLOCKS,
    rows=st.sampled_from([(1, 200), (2, 16), (3, 64), (30, 1)]),
    alphas=st.sampled_from([(0.5, 0.2), (0.9, 0.9), (1.0, 0.0), (0.0, 0.0)]),
    last_rows=st.sampled_from([0, 1, 20, 500]),
)
@settings(max_examples=15, deadline=None)
def test_chunked_keeps_for_a_padded_prompt_what_it_keeps_for_it_alone(
    sample, select, mass, batch, block, rows, alphas, last_rows
):
    def scores(query, key, segment):
        return sample(query, key, segment, SCALE, batch.q_offset, *rows, block[1])

    def kept(column, slash, q_len, kv_len, segment):
        sizes = (q_len, kv_len, batch.q_offset, *block)
        return select(column.float(), slash.float(), segment, *sizes, *alphas, True, 2, last_rows)

    def cra(query, key, bits, segment):
        return mass(query, key, bits, segment, SCALE, batch.q_offset, *rows, *block)

    found = scores(batch.query, batch.key, batch.segment)
    kv_len = batch.key.shape[2]
    bits = kept(*found, Q_LEN, kv_len, batch.segment)
    shares = cra(batch.query, batch.key, bits, batch.segment)
    for b, end in enumerate(batch.ends):
        if end == 0:
            assert not found[0][b].any() and not found[1][b].any() and (shares[b] == 1).all()
            continue
        query, key, segment = batch.alone(b)
        alone = scores(query, key, segment)
        n_k = alone[0].shape[-1]
        for one, own in zip(found, alone, strict=True):
            torch.testing.assert_close(one[b : b + 1, :, :n_k], own, **NEAR)
            assert not one[b, :, n_k:].any()
        # Of the same scores, so that none may fall on the other side of alpha.
        own_bits = kept(*(one[b : b + 1, :, :n_k] for one in found), end, key.shape[2], segment)
        own = of_prompt(blocks.unpack_bits(bits[b], -(-kv_len // block[1])), end, batch.q_offset, *block)
        assert torch.equal(own, blocks.unpack_bits(own_bits[0], n_k))
        torch.testing.assert_close(shares[b : b + 1], cra(query, key, own_bits, segment), **NEAR)


@given(
    q_len=st.integers(1, 40),
    kv_len=st.integers(0, 50),
    q_offset=st.integers(-45, 60),
    padding=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    block_q=st.sampled_from([4, 16]),
    last_rows=st.integers(0, 50),
    chunks=st.tuples(st.integers(1, 5), st.integers(1, 9)),
)
@settings(max_examples=200, deadline=None)
def test_rows_are_the_oracles(q_len, kv_len, q_offset, padding, block_q, last_rows, chunks):
    place, count = torch.arange(kv_len), torch.tensor(padding)[:, None]
    segment = -(place >= kv_len - count).int()
    ends = row_ends(segment, q_len, q_offset, CPU)
    assert ends.tolist() == shared_reference.prompt_ends(segment, 2, q_len, q_offset)
    stops = block_stops(ends, q_len, block_q)
    whole = blocks_of_last_rows(ends, q_len, block_q, last_rows)
    rows, valid = sampled_rows(ends, *chunks)
    for b, end in enumerate(ends.tolist()):
        for i, (stop, holds) in enumerate(zip(stops[b].tolist(), whole[b].tolist(), strict=True)):
            own = shared_reference.rows_of_block(i, block_q, q_len, end)
            assert own == range(i * block_q, stop)
            assert holds == any(end - last_rows <= row < end for row in own)
        assert rows[b][valid[b]].tolist() == shared_reference.sampled_rows(end, *chunks)


def test_rows_that_have_no_key_are_no_padding():
    segment = torch.tensor([[0, 0, -1, -1], [-1, -1, -1, -1]], dtype=torch.int32)
    assert row_ends(segment, 4, 0, CPU).tolist() == [2, 0]
    assert row_ends(segment, 2, 2, CPU).tolist() == [0, 0]  # the chunk behind a short prompt's end
    assert row_ends(segment, 5, 0, CPU).tolist() == [5, 5]
    assert row_ends(segment, 4, -2, CPU).tolist() == [4, 2]
    assert row_ends(None, 4, 0, CPU).tolist() == [4]


@pytest.mark.parametrize("sample, select, mass", CHUNKED)
def test_prompts_that_are_not_padded_on_the_right_are_as_they_were(sample, select, mass):
    batch = batch_of((0, 25), (0, 0), 0, seed=1)
    key = batch.key.nan_to_num()
    nothing = torch.zeros_like(batch.segment)
    for segment in (None, nothing, nothing[:1]):
        found = sample(batch.query, key, segment, SCALE, 0, 2, 16, 16)
        expected = sample(batch.query, key, None, SCALE, 0, 2, 16, 16)
        torch.testing.assert_close(found, expected)
        arguments = (*(x.float() for x in expected), segment, Q_LEN, Q_LEN, 0, 16, 16, 0.5, 0.5, True, 2, 20)
        assert torch.equal(select(*arguments), select(*arguments[:2], None, *arguments[3:]))
    scores = torch.zeros(2, 2, 6)
    bits = select(scores, scores, batch.segment, Q_LEN, Q_LEN, 0, 16, 16, 0.0, 0.0, False, 0, 20)
    whole = blocks.unpack_bits(bits, 6)[1, 0].any(-1)
    assert whole.tolist() == [False, False, False, False, True, True]  # rows 70 to 89


def test_forced_last_rows_of_a_rule_are_each_prompts_own():
    batch = batch_of((0, 0), (0, 41), 0, seed=2)
    key = batch.key.nan_to_num()
    rule = parse_rule("streaming:sink=1,window=1+last3")
    bits = rule.select(batch.query, key, key_segment=batch.segment, block_q=16, block_k=16)
    kept = blocks.unpack_bits(bits, 6).expand(2, 2, -1, -1)
    assert kept[0, 0].sum(-1).tolist() == [1, 2, 2, 2, 2, 6]
    assert kept[1, 0].sum(-1).tolist() == [1, 2, 3, 4, 1, 1]  # rows 46 to 48, in two blocks
