"""select_budget against its oracle, and the laws of what is left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import SELECTION as BASE
from support.attention_inputs import SELECTION_CASES, make_inputs
from support.budget_oracle import assert_equals_the_oracle

from sa_compile.kernels import ops
from sa_compile.kernels.select_budget import eager, reference
from sa_compile.kernels.select_budget.op import Arguments, rows_of_a_block
from sa_compile.kernels.shared import blocks

CASES = [
    *SELECTION_CASES,
    pytest.param(BASE.but(heads=17, q_len=40, kv_len=60, q_offset=20), id="more-rows-than-at-once"),
    pytest.param(BASE.but(batch=2, heads=6, kv_heads=3, q_len=64, kv_len=64), id="several-kv-heads"),
]
BUDGET, TAU = 0.05, 0.4
NONE = 100.0  # more than there is: nothing is kept for it


def arguments(case, inputs, keep_sink=True, window=2, rows=8, budget=BUDGET, tau=TAU):
    """The op's arguments."""
    where = (inputs.key_segment, case.scale, case.q_offset, case.block_q, case.block_k)
    return Arguments(inputs.query, inputs.key, *where, budget, tau, rows, keep_sink, window)


def run_op(arguments):
    return ops.select_budget_op(*arguments)


def unpacked(mask, case):
    return blocks.unpack_bits(mask, -(-case.kv_len // case.block_k))


def test_the_cpu_has_a_kernel_of_its_own():
    """So what the tests below call the op is the C++ one."""
    assert ops.HAS_CPU_LIBRARY
    assert torch._C._dispatch_has_kernel_for_dispatch_key("sampleattn::select_budget", "CPU")


@pytest.mark.parametrize(
    "select",
    [pytest.param(run_op, id="op"), pytest.param(eager.select_budget, id="eager")],
)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sink, window", [(True, 2), (False, 1)], ids=["forced", "diagonal-alone"])
def test_blocks_equal_the_oracles(select, case, sink, window):
    given = arguments(case, make_inputs(case), sink, window)
    for budget, tau in ((BUDGET, TAU), (BUDGET, NONE), (NONE, TAU)):
        bounded = given._replace(budget=budget, tau=tau)
        assert_equals_the_oracle(unpacked(select(bounded), case), bounded)


@pytest.mark.parametrize(
    "select",
    [pytest.param(run_op, id="op"), pytest.param(eager.select_budget, id="eager")],
)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bounds", [(BUDGET, NONE), (NONE, TAU / 3)], ids=["budget", "tau"])
def test_blocks_equal_the_oracles_with_sinks(select, case, bounds):
    sinks, (budget, tau) = torch.linspace(-1.0, 6.0, case.heads), bounds
    given = arguments(case, make_inputs(case), budget=budget, tau=tau)._replace(sinks=sinks)
    assert_equals_the_oracle(unpacked(select(given), case), given)


@pytest.mark.parametrize("select", [run_op, eager.select_budget], ids=["op", "eager"])
def test_one_sink_is_that_of_all_heads(select):
    given = arguments(BASE, make_inputs(BASE))
    one, all_heads = torch.tensor([4.0]), torch.full((2 * BASE.heads,), 4.0)[::2]
    found = select(given._replace(sinks=one))
    assert torch.equal(found, select(given._replace(sinks=all_heads)))
    assert not torch.equal(found, select(given))


@pytest.mark.parametrize("select", [run_op, eager.select_budget], ids=["op", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_a_sink_of_minus_infinity_is_none_and_a_large_one_leaves_what_is_forced(select, case):
    given = arguments(case, make_inputs(case))
    none = torch.full((case.heads,), -torch.inf)
    assert torch.equal(select(given._replace(sinks=none)), select(given))
    _, _, forced, allowed = reference.growths(given)
    for large in (60.0, torch.inf):
        kept = unpacked(select(given._replace(sinks=torch.full((1,), large))), case)
        assert torch.equal(kept, forced & allowed)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(0, 2**31), st.floats(-4.0, 8.0), st.sampled_from([1, 8]))
def test_less_is_kept_with_a_sink(q_len, seed, sink, rows):
    """By either bound. With several rows a budget keeps no more blocks, but they may be others."""
    case = BASE.but(q_len=q_len, kv_len=q_len + 40, q_offset=40, block_q=16)
    given = arguments(case, make_inputs(case, seed), rows=rows)
    sinks = torch.tensor([sink])
    for budget, tau in ((BUDGET, NONE), (NONE, TAU)):
        bounded = given._replace(budget=budget, tau=tau)
        kept = unpacked(run_op(bounded), case)
        beside_sink = unpacked(run_op(bounded._replace(sinks=sinks)), case)
        assert (beside_sink.sum(-1) <= kept.sum(-1)).all()
        if rows == 1 or budget == NONE:
            assert not (beside_sink & ~kept).any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bounds", [(0.0, NONE), (NONE, 0.0)], ids=["budget", "tau"])
def test_zero_keeps_every_block_that_causality_allows(case, bounds):
    budget, tau = bounds
    given = arguments(case, make_inputs(case), budget=budget, tau=tau)
    *_, allowed = reference.growths(given)
    assert torch.equal(unpacked(run_op(given), case), allowed)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(0, 80), st.integers(0, 2**31), st.floats(0.005, 0.3))
def test_the_share_that_is_left_out_is_bounded_and_shrinks_with_the_budget(q_len, before_them, seed, budget):
    """Each block left out adds less than budget**2 to the square, and a smaller budget leaves out less."""
    case = BASE.but(q_len=q_len, kv_len=q_len + before_them, q_offset=before_them, block_q=16)
    inputs = make_inputs(case, seed)
    given = arguments(case, inputs, rows=16, budget=budget, tau=NONE)
    kept = unpacked(eager.select_budget(given), case)
    less = unpacked(eager.select_budget(given._replace(budget=budget / 2)), case)
    assert not (kept & ~less).any()
    share = eager.block_shares(given).share
    *_, allowed = reference.growths(given)
    out = torch.where(allowed & ~kept, share, 0).double()
    count = (out > 0).sum(-1)
    assert (out.sum(-1).square() <= count * budget**2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("where", [10, 70, 130])
def test_no_later_row_is_looked_at(where):
    """Blocks of the rows before ``where`` stay what they are, whatever comes later."""
    case = BASE.but(q_len=160, kv_len=160, block_q=16)
    inputs = make_inputs(case)
    given = arguments(case, inputs)
    kept = unpacked(run_op(given), case)
    inputs.query[:, :, where:] *= -7
    inputs.key[:, :, where:] *= 5
    changed = unpacked(run_op(given), case)
    whole = where // case.block_q
    assert torch.equal(kept[:, :, :whole], changed[:, :, :whole])


@pytest.mark.parametrize("select", [run_op, eager.select_budget], ids=["op", "eager"])
def test_few_rows_of_many_keys(select):
    """Past 16384 keys fewer rows are sampled than asked for."""
    case = BASE.but(q_len=64, kv_len=33000, q_offset=32936, block_q=64, block_k=128, heads=1)
    given = arguments(case, make_inputs(case), rows=16)
    assert_equals_the_oracle(unpacked(select(given), case), given)
    assert rows_of_a_block(16, case.kv_len, case.block_q) == 4


def test_a_key_that_is_not_a_number_leaves_what_is_forced():
    inputs = make_inputs(BASE)
    inputs.key[:, :, 40] = torch.nan
    given = arguments(BASE, inputs)
    *_, forced, allowed = reference.growths(given)
    kept = unpacked(run_op(given), BASE)
    assert torch.equal(kept[:, :, 2:], (forced & allowed)[:, :, 2:])
    assert torch.equal(kept, unpacked(eager.select_budget(given), BASE))


@pytest.mark.parametrize(
    "rows, kv_len, expected",
    [(32, 16384, 32), (32, 16385, 16), (32, 65536, 8), (32, 1 << 20, 4), (2, 1 << 20, 2), (128, 100, 128)],
)
def test_long_prompts_sample_fewer_rows(rows, kv_len, expected):
    assert rows_of_a_block(rows, kv_len, 128) == expected


def test_a_query_block_has_no_more_rows_than_it_has():
    assert rows_of_a_block(64, 1000, 16) == 16


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("rows", 12, "'rows' must be a power of two, got 12"),
        ("rows", 0, "'rows' must be a power of two, got 0"),
        ("budget", -0.1, "'budget' must be >= 0, got -0.1"),
        ("tau", -1.0, "'tau' must be >= 0, got -1.0"),
        ("window_slashes", 0, "'window_slashes' must be >= 1, got 0"),
        ("sinks", torch.zeros(3), r"'sinks' must have size 2 or 1 in dimension 0"),
        ("sinks", torch.zeros(2).half(), r"'sinks' must be a float32 \[2\] or \[1\] tensor or None"),
        ("block_q", 48, "'block_q' must be one of 16, 32, 64, 128, got 48"),
    ],
)
def test_what_does_not_fit_is_named(name, value, message):
    inputs = make_inputs(BASE)
    with pytest.raises(ValueError, match=message):
        ops.select_budget(inputs.query, inputs.key, **{"budget": BUDGET, "tau": TAU, name: value})
