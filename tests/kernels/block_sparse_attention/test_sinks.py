"""Sinks against a softmax in float64 with one more column, and what the extremes must give."""

import pytest
import torch
from support.attention_inputs import Case, kept_and_visible, make_inputs
from support.implementations import eager, reference

from sa_compile.kernels import ops

BASE = Case(heads=4, kv_heads=2, q_len=200, kv_len=200, head_dim=64, value_head_dim=64, sinks=True)
CASES = [
    pytest.param(BASE, id="fp32"),
    pytest.param(BASE.but(dtype=torch.bfloat16), id="bf16"),
    pytest.param(BASE.but(dtype=torch.float16), id="fp16"),
    pytest.param(BASE.but(density=1.0, window=50), id="window"),
    pytest.param(BASE.but(batch=3, segments="left_padding", dtype=torch.bfloat16), id="left padding"),
]
OPS = pytest.mark.parametrize(
    "op",
    [
        pytest.param(ops.block_sparse_attention_op, id="op"),
        pytest.param(eager.block_sparse_attention, id="eager"),
    ],
)
SINKS = torch.tensor([0.5, -1.0, 3.0, 6.0])


def computed(op, case, inputs, sinks):
    inputs.sinks = sinks
    return op(*inputs.attention_arguments(case))


def expected(case, inputs, sinks):
    """With a column of sinks behind the scores, in float64."""
    mask = kept_and_visible(case, inputs)
    group = case.heads // case.kv_heads
    key, value = (x.double().nan_to_num().repeat_interleave(group, 1) for x in (inputs.key, inputs.value))
    scores = (inputs.query.double() @ key.mT * case.scale).masked_fill(~mask, -torch.inf)
    column = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ value


@OPS
@pytest.mark.parametrize("case", CASES)
def test_error_is_that_of_the_op_without_sinks(op, case):
    """In the norm and in the worst entry: what is rounded to the dtype is rounded once."""
    inputs = make_inputs(case)
    without, lse = computed(op, case, inputs, None)
    out, same_lse = computed(op, case, inputs, SINKS)
    error = without.double() - expected(case, inputs, torch.full((4,), -1e30))
    error_with = out.double() - expected(case, inputs, SINKS)
    assert error_with.norm() <= 1.5 * error.norm()
    assert error_with.abs().amax() <= 1.5 * error.abs().amax()
    assert torch.equal(lse, same_lse)


@OPS
@pytest.mark.parametrize("case", CASES)
def test_a_sink_of_minus_infinity_is_none_and_one_of_40_leaves_nothing(op, case):
    inputs = make_inputs(case)
    without, _ = computed(op, case, inputs, None)
    for sinks in (torch.full((4,), -torch.inf), torch.tensor([-torch.inf])):
        assert torch.equal(computed(op, case, inputs, sinks)[0], without)
    for sink in (40.0, 1e30):
        out, _ = computed(op, case, inputs, torch.tensor([sink]))
        assert out.double().abs().max() < 1e-12


def test_means_of_dropped_blocks_have_their_part_beside_a_sink():
    inputs = make_inputs(BASE)
    kept = (inputs.query, inputs.key, inputs.value, inputs.block_mask, None)
    where = (BASE.scale, 0, 32, 32)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = (*(x.to(dtype) for x in kept[:3]), *kept[3:])
        without, lse = ops.block_mean_attention_op(*tensors, None, *where)
        out, same_lse = ops.block_mean_attention_op(*tensors, SINKS, *where)
        exact, exact_lse = reference.block_mean_attention(*tensors, None, *where)
        wanted, _ = reference.block_mean_attention(*tensors, SINKS, *where)
        share = torch.sigmoid(exact_lse - SINKS.double()[:, None])[..., None]
        torch.testing.assert_close(wanted, exact * share)
        assert (out.double() - wanted).norm() <= 1.5 * (without.double() - exact).norm()
        assert (out.double() - wanted).abs().amax() <= 1.5 * (without.double() - exact).abs().amax()
        torch.testing.assert_close(lse, same_lse)
