"""``out * sigmoid(lse - sink)`` against a softmax in float64 with one more column."""

import pytest
import torch
from support.attention_inputs import Case, kept_and_visible, make_inputs
from support.implementations import reference

from sa_compile.kernels import ops
from sa_compile.methods import ON_TENSORS
from sa_compile.methods.sinks import finite_lse, with_sinks

BASE = Case(heads=4, kv_heads=2, q_len=200, kv_len=200, head_dim=64, value_head_dim=64)
CASES = [
    pytest.param(BASE, id="fp32"),
    pytest.param(BASE.but(dtype=torch.bfloat16), id="bf16"),
    pytest.param(BASE.but(dtype=torch.float16), id="fp16"),
    pytest.param(BASE.but(density=1.0, window=50), id="window"),
    pytest.param(BASE.but(batch=3, segments="left_padding", dtype=torch.bfloat16), id="left padding"),
]
SINKS = torch.tensor([0.5, -1.0, 3.0, 6.0])


def expected(case, inputs, sinks):
    """With a column of sinks behind the scores, in float64."""
    mask = kept_and_visible(case, inputs)
    group = case.heads // case.kv_heads
    key, value = (x.double().nan_to_num().repeat_interleave(group, 1) for x in (inputs.key, inputs.value))
    scores = (inputs.query.double() @ key.mT * case.scale).masked_fill(~mask, -torch.inf)
    column = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ value


def computed(case, inputs, sinks):
    out, lse = ops.block_sparse_attention_op(*inputs.attention_arguments(case))
    return out, with_sinks(ON_TENSORS, out, finite_lse(ON_TENSORS, lse), sinks).to(case.dtype)


@pytest.mark.parametrize("case", CASES)
def test_error_is_that_of_the_op_without_sinks(case):
    inputs = make_inputs(case)
    without, out = computed(case, inputs, SINKS)
    error = (without.double() - expected(case, inputs, torch.full((4,), -1e30))).norm()
    assert (out.double() - expected(case, inputs, SINKS)).norm() <= 1.5 * error


@pytest.mark.parametrize("case", CASES)
def test_a_sink_of_minus_infinity_is_none_and_one_of_40_leaves_nothing(case):
    inputs = make_inputs(case)
    without, out = computed(case, inputs, torch.full((4,), -torch.inf))
    assert torch.equal(out, without)
    _, out = computed(case, inputs, torch.tensor([40.0]))
    assert out.double().abs().max() < 1e-12


def test_means_of_dropped_blocks_have_their_part_beside_a_sink():
    inputs = make_inputs(BASE)
    arguments = (inputs.query, inputs.key, inputs.value, inputs.block_mask, None, BASE.scale, 0, 32, 32)
    out, lse = ops.block_mean_attention_op(*arguments)
    exact, exact_lse = reference.block_mean_attention(*arguments)
    wanted = exact * torch.sigmoid(exact_lse - SINKS.double().view(-1, 1))[..., None]
    actual = with_sinks(ON_TENSORS, out, lse, SINKS)
    assert (actual.double() - wanted).norm() <= 1.5 * (out.double() - exact).norm()
