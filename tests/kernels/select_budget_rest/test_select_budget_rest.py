"""select_budget_rest against its oracle, and the laws of what it says of the blocks that are left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import SELECTION as BASE
from support.attention_inputs import SELECTION_CASES, make_inputs
from support.budget_oracle import assert_rest_equals_the_oracle

from sa_compile.kernels import ops
from sa_compile.kernels.select_budget import eager as budget_eager
from sa_compile.kernels.select_budget import reference as budget_reference
from sa_compile.kernels.select_budget_rest import eager, reference
from sa_compile.kernels.select_budget_rest.op import Arguments
from sa_compile.kernels.shared import blocks

CASES = [
    *SELECTION_CASES,
    pytest.param(BASE.but(heads=17, q_len=40, kv_len=60, q_offset=20), id="more-rows-than-at-once"),
    pytest.param(BASE.but(batch=2, heads=6, kv_heads=3, q_len=64, kv_len=64), id="several-kv-heads"),
    pytest.param(BASE.but(value_head_dim=11, transposed=False), id="other-values"),
]
BUDGET = 0.3
NONE = 100.0  # more than there is: nothing is kept for it


def arguments(case, inputs, budget=BUDGET, tau=NONE, rows=8, keep_sink=True, window=2):
    """The op's arguments."""
    where = (inputs.key_segment, case.scale, case.q_offset, case.block_q, case.block_k)
    tensors = (inputs.query, inputs.key, inputs.value, inputs.block_mask)
    return Arguments(*tensors, *where, budget, tau, rows, keep_sink, window)


def run_op(arguments):
    return ops.select_budget_rest_op(*arguments)


def unpacked(mask, case):
    return blocks.unpack_bits(mask, -(-case.kv_len // case.block_k))


BOTH = pytest.mark.parametrize(
    "run", [pytest.param(run_op, id="op"), pytest.param(eager.select_budget_rest, id="eager")]
)


def test_the_cpu_has_a_kernel_of_its_own():
    """So what the tests below call the op is the C++ one."""
    assert ops.HAS_CPU_LIBRARY
    assert torch._C._dispatch_has_kernel_for_dispatch_key("sampleattn::select_budget_rest", "CPU")


@BOTH
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shared", [False, True], ids=["a-mask-a-head", "one-mask"])
def test_equals_the_oracle(run, case, shared):
    case = case.but(density=0.15, shared_index=shared)
    inputs = make_inputs(case)
    for budget, sink, window in ((BUDGET, True, 2), (NONE, False, 1)):
        given = arguments(case, inputs, budget, keep_sink=sink, window=window)
        assert_rest_equals_the_oracle(run(given), given)


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_equals_the_oracle_with_sinks(run, case):
    inputs = make_inputs(case.but(density=0.15))
    given = arguments(case, inputs, tau=0.2)._replace(sinks=torch.linspace(-1.0, 4.0, case.heads))
    assert_rest_equals_the_oracle(run(given), given)


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_a_sink_that_leaves_little_to_keys_leaves_the_rest_as_keys_have_it(run, case):
    """It has its share of the whole output: what is left out is what it is to the keys."""
    given = arguments(case, make_inputs(case.but(density=0.15)), NONE)
    found = run(given._replace(sinks=torch.tensor([60.0])))
    for tensor, same in zip(found, run(given), strict=True):
        assert torch.equal(tensor, same)


@BOTH
def test_equals_the_oracle_where_few_rows_of_many_keys_are_sampled(run):
    case = BASE.but(q_len=64, kv_len=20000, q_offset=19936, block_q=64, block_k=128, heads=1, density=0.05)
    given = arguments(case, make_inputs(case), rows=8, tau=0.5)
    assert_rest_equals_the_oracle(run(given), given)


@pytest.mark.parametrize("case", CASES)
def test_what_is_kept_is_what_select_budget_keeps_and_the_given_blocks(case):
    inputs = make_inputs(case.but(density=0.15))
    given = arguments(case, inputs)
    *_, allowed = budget_reference.growths(given.of_budget)
    budget = unpacked(ops.select_budget_op(*given.of_budget), case)
    expected = budget | (unpacked(inputs.block_mask, case) & allowed)
    assert torch.equal(unpacked(run_op(given)[0], case), expected)


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_of_a_zero_budget(run, case):
    given = arguments(case, make_inputs(case), budget=0.0)
    _, value, share, level = run(given)
    assert not value.any() and not share.any()
    exact = reference.select_budget_rest(given)[3]
    torch.testing.assert_close(level.double(), exact, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(0, 80), st.integers(0, 2**31), st.floats(0.005, 2.0))
def test_shares_of_what_is_kept_and_of_the_rest_make_one(q_len, before_them, seed, budget):
    case = BASE.but(q_len=q_len, kv_len=q_len + before_them, q_offset=before_them, block_q=16, density=0.1)
    given = arguments(case, make_inputs(case, seed), budget=budget, rows=16)
    mask, value, share, level = run_op(given)
    sampled = budget_eager.block_shares(given.of_budget)
    kept = torch.where(unpacked(mask, case), sampled.share, 0).sum(-1)
    torch.testing.assert_close(kept + share, torch.ones_like(share), rtol=0, atol=1e-5)
    torch.testing.assert_close(level, sampled.level + kept.log(), rtol=1e-4, atol=1e-4)
    assert (value.abs().amax(-1) <= share * given.value.abs().amax() + 1e-6).all()


@pytest.mark.parametrize("where", [10, 70, 130])
def test_no_later_row_is_looked_at(where):
    """Blocks of the rows before ``where`` stay what they are, whatever comes later."""
    case = BASE.but(q_len=160, kv_len=160, block_q=16, density=0.1)
    inputs = make_inputs(case)
    given = arguments(case, inputs)
    before = run_op(given)
    inputs.query[:, :, where:] *= -7
    inputs.key[:, :, where:] *= 5
    inputs.value[:, :, where:] = torch.nan
    whole = where // case.block_q
    for tensor, changed in zip(before, run_op(given), strict=True):
        assert torch.equal(tensor[:, :, :whole], changed[:, :, :whole])


@BOTH
def test_a_mean_value_that_is_not_finite_counts_as_zero(run):
    case = BASE.but(q_len=160, kv_len=160, density=0.0)
    inputs = make_inputs(case)
    given = arguments(case, inputs, NONE, keep_sink=True, window=1)
    mask, value, share, level = run(given)
    inputs.value[:, :, 3] = torch.nan  # in the sink's block, which is always kept
    for tensor, same in zip((mask, value, share, level), run(given), strict=True):
        assert torch.equal(tensor, same)
    inputs.value[:, :, 40, 5] = torch.inf  # in a block that later rows leave out
    changed = run(given)
    for tensor, same in zip((mask, share, level), (changed[0], *changed[2:]), strict=True):
        assert torch.equal(tensor, same)
    others = torch.arange(value.shape[-1]) != 5
    assert torch.equal(value[..., others], changed[1][..., others])
    exact = reference.select_budget_rest(given)[1]
    torch.testing.assert_close(changed[1].double(), exact, rtol=1e-5, atol=1e-5)
    assert (changed[1][:, :, -1, 5] != value[:, :, -1, 5]).all()


@BOTH
def test_a_key_that_is_not_a_number_is_seen_in_the_rest(run):
    """What rows attend to is unknown then, as it is in dense attention."""
    inputs = make_inputs(BASE.but(density=0.0))
    inputs.key[:, :, 40] = torch.nan
    _, value, share, level = run(arguments(BASE, inputs))
    assert value[:, :, 2:].isnan().all() and share[:, :, 2:].isnan().all() and level[:, :, 2:].isnan().all()
    assert share[:, :, 0].isfinite().all() and level[:, :, 0].isfinite().all()


@BOTH
def test_strides_do_not_matter(run):
    case = BASE.but(batch=2, heads=4, kv_heads=2, density=0.1)
    inputs = make_inputs(case)
    expected = run(arguments(case, inputs))
    for name in ("query", "key", "value", "block_mask"):
        memory = getattr(inputs, name).mT.contiguous()
        setattr(inputs, name, memory.mT)
    for tensor, same in zip(run(arguments(case, inputs)), expected, strict=True):
        torch.testing.assert_close(tensor, same)


@BOTH
@pytest.mark.parametrize("segments", ["none", "left_padding"])
def test_query_blocks_that_stand_apart_are_those_of_all(run, segments):
    case = BASE.but(batch=2, q_len=180, kv_len=217, q_offset=37, segments=segments, density=0.1)
    inputs, ranks = make_inputs(case), 3
    every = arguments(case, inputs)
    found = run(every)
    of_row = torch.arange(case.q_len) // case.block_q % ranks
    for rank in range(ranks):
        mine = every._replace(
            query=inputs.query[:, :, of_row == rank],
            block_mask=inputs.block_mask[:, :, rank::ranks],
            q_offset=case.q_offset + rank * case.block_q,
            q_stride=ranks,
        )
        assert_rest_equals_the_oracle(run(mine), mine)
        for own, whole in zip(run(mine), found, strict=True):
            torch.testing.assert_close(own, whole[:, :, rank::ranks], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("value", lambda x: x[:, :, :5], "'value' must have key's batch, heads and length"),
        ("block_mask", lambda x: x.long(), "'block_mask' must be an int32"),
        ("block_mask", lambda x: x[:, :, :1], "'block_mask'.*size 7 in dimension 2"),
    ],
)
def test_what_does_not_fit_is_named(name, change, message):
    inputs = make_inputs(BASE)
    tensors = {x: getattr(inputs, x) for x in ("query", "key", "value", "block_mask")}
    tensors[name] = change(tensors[name])
    options = {"block_q": BASE.block_q, "block_k": BASE.block_k, "budget": BUDGET, "tau": NONE}
    with pytest.raises(ValueError, match=f"select_budget_rest: {message}"):
        ops.select_budget_rest(**tensors, **options)
    with pytest.raises(RuntimeError, match=f"select_budget_rest: '{name}' must"):
        run_op(arguments(BASE, inputs)._replace(**tensors))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rows": 3}, "'rows' must be a power of two, got 3"),
        ({"budget": -1.0}, "'budget' must be >= 0, got -1.0"),
        ({"window_slashes": 0}, "'window_slashes' must be >= 1, got 0"),
        ({"key_segment": torch.zeros(1, 3).int()}, "'key_segment' must have size"),
    ],
)
def test_what_select_budget_would_not_take_is_said_of_the_op_that_was_called(change, message):
    inputs = make_inputs(BASE)
    options = {"block_q": BASE.block_q, "block_k": BASE.block_k, "budget": BUDGET, "tau": NONE, **change}
    with pytest.raises(ValueError, match=f"select_budget_rest: {message}"):
        ops.select_budget_rest(inputs.query, inputs.key, inputs.value, inputs.block_mask, **options)
