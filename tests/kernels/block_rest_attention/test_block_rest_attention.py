"""block_rest_attention against its oracle, and the laws of what it gives beside the kept blocks."""

import pytest
import torch
from support.attention_inputs import EPSILON, Case, make_inputs

from sa_compile.kernels import ops
from sa_compile.kernels.block_rest_attention import eager, reference
from sa_compile.kernels.block_rest_attention.op import Arguments
from sa_compile.kernels.block_sparse_attention.reference import dense_attention
from sa_compile.kernels.shared import blocks

BASE = Case(density=0.3)
CASES = [
    pytest.param(BASE, id="fp32"),
    pytest.param(BASE.but(dtype=torch.bfloat16), id="bf16"),
    pytest.param(BASE.but(dtype=torch.float16, transposed=False), id="fp16"),
    pytest.param(BASE.but(batch=2, heads=6, kv_heads=2), id="gqa"),
    pytest.param(BASE.but(batch=2, shared_index=True), id="one-mask"),
    pytest.param(BASE.but(q_len=300, kv_len=300, block_q=128, block_k=128), id="length-300-block-128"),
    pytest.param(BASE.but(q_len=70, kv_len=200, q_offset=125), id="offset-inside-a-block"),
    pytest.param(BASE.but(q_len=200, kv_len=70, q_offset=-130), id="rows-before-the-first-key"),
    pytest.param(BASE.but(batch=3, segments="left_padding"), id="left-padding"),
    pytest.param(BASE.but(batch=3, segments="right_padding"), id="right-padding"),
    pytest.param(BASE.but(head_dim=7, value_head_dim=3), id="dims-7-and-3"),
    pytest.param(BASE.but(q_len=1, kv_len=90, q_offset=89), id="one-row"),
]


def run_op(arguments):
    return ops.block_rest_attention_op(*arguments)


RUNS = [pytest.param(run_op, id="op"), pytest.param(eager.block_rest_attention, id="eager")]
BOTH = pytest.mark.parametrize("run", RUNS)


def arguments(case, inputs, part=0.5, sinks=None, budget=100.0):
    """The op's arguments, after a selection that leaves out almost all but what the case's mask keeps."""
    where = (case.q_offset, case.block_q, case.block_k)
    tensors = (inputs.query, inputs.key, inputs.value)
    selected = ops.select_budget_rest_op(
        *tensors, inputs.block_mask, inputs.key_segment, case.scale, *where, budget, 100.0, 8, True, 1
    )
    return Arguments(*tensors, *selected, inputs.key_segment, sinks, case.scale, part, *where)


def assert_equals_the_oracle(found, given):
    (out, lse), (exact, exact_lse) = found, reference.block_rest_attention(given)
    assert out.dtype == given.query.dtype and lse.dtype == torch.float32
    # Two roundings to the dtype: of the kept blocks' output, and of the sum.
    bound = (2 * EPSILON[out.dtype] + 2e-6) * given.value.double().nan_to_num().abs().amax()
    assert (out.double() - exact).abs().amax() <= bound
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


def test_the_cpu_has_a_kernel_of_its_own():
    """So what the tests below call the op is the C++ one."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key("sampleattn::block_rest_attention", "CPU")


@BOTH
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_sinks", [False, True], ids=["no-sinks", "sinks"])
def test_equals_the_oracle(run, case, with_sinks):
    inputs = make_inputs(case)
    sinks = torch.linspace(-2, 5, case.heads) if with_sinks else None
    for part in (0.5, 1.0):
        given = arguments(case, inputs, part, sinks)
        assert_equals_the_oracle(run(given), given)


@BOTH
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("part", [0.25, 1.0])
@pytest.mark.parametrize("with_sinks", [False, True], ids=["no-sinks", "sinks"])
def test_what_is_added_is_bounded_by_the_share_of_the_rest(run, case, part, with_sinks):
    sinks = torch.linspace(-2, 5, case.heads) if with_sinks else None
    given = arguments(case, make_inputs(case), part, sinks)
    out, lse = run(given)
    kept, kept_lse = ops.block_sparse_attention_op(*given.of_kept_blocks)
    largest = given.value.double().nan_to_num().abs().amax()
    share = given.rest_share.double().repeat_interleave(case.block_q, 2)[:, :, : case.q_len]
    added = (out.double() - kept.double()).abs().amax(-1)
    assert (added <= 2 * largest * (part * share + EPSILON[case.dtype] + 1e-6)).all()
    assert torch.equal(lse, kept_lse)
    empty = lse == -torch.inf
    assert torch.equal(out[empty], torch.zeros_like(out[empty]))


@BOTH
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sinks", [None, torch.tensor([2.0])], ids=["no-sinks", "sinks"])
def test_no_part_and_nothing_left_out_are_block_sparse_attention_to_the_bit(run, case, sinks):
    inputs = make_inputs(case)
    sinks = None if sinks is None else sinks.expand(case.heads)
    for given in (arguments(case, inputs, 0.0, sinks), arguments(case, inputs, 1.0, sinks, budget=0.0)):
        kept = ops.block_sparse_attention_op(*given.of_kept_blocks)
        for tensor, expected in zip(run(given), kept, strict=True):
            if sinks is None or run is run_op:
                assert torch.equal(tensor, expected)
            else:  # PyTorch takes the sink's share back before it gives it its new one
                torch.testing.assert_close(tensor, expected)


@BOTH
def test_a_sink_of_minus_infinity_is_none_and_one_of_40_leaves_nothing(run):
    given = arguments(BASE, make_inputs(BASE), 1.0)
    without, _ = run(given)
    none, _ = run(given._replace(sinks=torch.full((BASE.heads,), -torch.inf)))
    assert torch.equal(none, without)
    for sink in (40.0, 1e30, torch.inf):
        out, _ = run(given._replace(sinks=torch.full((BASE.heads,), sink)))
        assert out.double().abs().max() < 1e-12


@BOTH
@pytest.mark.parametrize("with_sinks", [False, True], ids=["no-sinks", "sinks"])
def test_equal_rows_and_values_that_are_equal_in_a_block_give_dense_attention(run, with_sinks):
    """All rows of a block are as the sampled ones, and see every key: the rest is what they leave out."""
    case = BASE.but(heads=4, kv_heads=2, q_len=96, kv_len=320, q_offset=320, density=0.2)
    inputs = make_inputs(case)
    inputs.query = inputs.query[:, :, torch.arange(case.q_len) // case.block_q * case.block_q]
    inputs.value = inputs.value[:, :, torch.arange(case.kv_len) // case.block_k * case.block_k]
    sinks = torch.linspace(-1, 4, case.heads) if with_sinks else None
    given = arguments(case, inputs, 1.0, sinks)
    assert given.rest_share.min() > 0.05
    exact, lse = dense_attention(
        inputs.query, inputs.key, inputs.value, scale=case.scale, causal=True, q_offset=case.q_offset
    )
    if sinks is not None:
        exact = exact * torch.sigmoid(lse - sinks.double()[:, None])[..., None]
    torch.testing.assert_close(run(given)[0].double(), exact, rtol=1e-4, atol=1e-5)
    less = (run(given._replace(part=0.5))[0].double() - exact).abs().amax()
    nothing = (run(given._replace(part=0.0))[0].double() - exact).abs().amax()
    assert 1e-3 < less < nothing


@BOTH
def test_a_row_that_the_kept_keys_mean_more_to_gets_less(run):
    inputs = make_inputs(BASE)
    given = arguments(BASE, inputs, 1.0)
    lower = given._replace(rest_level=given.rest_level - 30)
    kept, _ = ops.block_sparse_attention_op(*given.of_kept_blocks)
    torch.testing.assert_close(run(lower)[0], kept, rtol=0, atol=1e-6)
    higher = given._replace(rest_level=given.rest_level + 30)
    out, _ = run(higher)
    share, value = (
        x.repeat_interleave(BASE.block_q, 2)[:, :, : BASE.q_len] for x in (given.rest_share, given.rest_value)
    )
    torch.testing.assert_close(out, (1 - share)[..., None] * kept + value, rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("share", [0.0, torch.nan])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5])], ids=["no-sinks", "sinks"])
def test_no_share_and_one_that_is_not_a_number_add_nothing(run, share, sinks):
    """A sampled row that is not a number says nothing of the other rows of its block."""
    given = arguments(BASE, make_inputs(BASE), 1.0)._replace(sinks=sinks)
    given.rest_share.fill_(share)
    given.rest_value.fill_(torch.nan)
    given.rest_level.fill_(torch.nan)
    kept, _ = ops.block_sparse_attention_op(*given.of_kept_blocks)
    assert torch.equal(run(given)[0], kept)


@BOTH
def test_a_value_that_is_not_a_number_reaches_the_rows_that_keep_it_alone(run):
    case = BASE.but(density=0.0)
    inputs = make_inputs(case)
    kept = torch.eye(5, dtype=torch.bool)
    kept[3, 1] = True
    inputs.block_mask = blocks.pack_bits(kept.expand(1, 2, 5, 5))
    inputs.value[:, :, 40] = torch.nan
    out, _ = run(arguments(case, inputs, 1.0))
    assert out[:, :, 40:64].isnan().all() and out[:, :, 96:128].isnan().all()
    assert (
        out[:, :, :40].isfinite().all()
        and out[:, :, 64:96].isfinite().all()
        and out[:, :, 128:].isfinite().all()
    )


@BOTH
@pytest.mark.parametrize("segments", ["none", "left_padding"])
def test_query_blocks_that_stand_apart_are_those_of_all(run, segments):
    case = BASE.but(batch=2, q_len=180, kv_len=217, q_offset=37, segments=segments)
    every, ranks = arguments(case, make_inputs(case)), 3
    out, lse = run(every)
    of_row = torch.arange(case.q_len) // case.block_q % ranks
    for rank in range(ranks):
        mine = every._replace(
            query=every.query[:, :, of_row == rank],
            **{
                name: getattr(every, name)[:, :, rank::ranks]
                for name in ("block_mask", "rest_value", "rest_share", "rest_level")
            },
            q_offset=case.q_offset + rank * case.block_q,
            q_stride=ranks,
        )
        own, own_lse = run(mine)
        torch.testing.assert_close(own, out[:, :, of_row == rank], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own_lse, lse[:, :, of_row == rank], rtol=1e-5, atol=1e-5)
        assert_equals_the_oracle((own, own_lse), mine)


def test_it_has_no_backward_and_says_so():
    given = arguments(BASE, make_inputs(BASE))
    out, _ = run_op(given._replace(query=given.query.detach().requires_grad_()))
    with pytest.raises(NotImplementedError, match="block_rest_attention has no backward"):
        out.sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"part": 1.5}, "'part' must be in .0, 1., got 1.5"),
        ({"rest_share": torch.zeros(1, 2, 4)}, "'rest_share'.*size 5 in dimension 2"),
        ({"rest_level": torch.zeros(1, 2, 5).double()}, "'rest_level' must be a float32"),
        ({"rest_value": torch.zeros(1, 2, 5, 7)}, "'rest_value'.*size 32 in dimension 3"),
        ({"value": torch.zeros(1, 1, 9, 32)}, "'value' must have key's batch, heads and length"),
        ({"block_mask": torch.zeros(1, 2, 5, 1)}, "'block_mask' must be an int32"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    given = arguments(BASE, make_inputs(BASE))._replace(**change)
    with pytest.raises(ValueError, match=f"block_rest_attention: {message}"):
        ops.block_rest_attention(*given[:7], block_q=32, block_k=32, part=given.part)
    if "part" not in change:
        (name,) = change
        with pytest.raises(RuntimeError, match=f"block_rest_attention: '{name}' must"):
            run_op(given)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key_segment": torch.zeros(1, 3).int()}, "'key_segment' must have size 160"),
        ({"sinks": torch.zeros(5)}, "'sinks' must have size 2 or 1"),
        ({"q_stride": 0}, "'q_stride' must be >= 1, got 0"),
        ({"block_q": 33}, "'block_q' must be one of 16, 32, 64, 128, got 33"),
    ],
)
def test_what_block_sparse_attention_would_not_take_is_said_of_the_op_that_was_called(change, message):
    given = arguments(BASE, make_inputs(BASE))
    with pytest.raises(ValueError, match=f"block_rest_attention: {message}"):
        ops.block_rest_attention(*given[:7], **{"block_q": 32, "block_k": 32, **change})
