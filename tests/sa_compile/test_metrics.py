"""CRA, SD and density against their definitions, row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import Case, make_inputs

from sa_compile import metrics
from sa_compile.kernels.shared import blocks

CASE = Case(heads=4, kv_heads=2, q_len=70, kv_len=70, block_q=16, block_k=16)


def causal_attention(case, inputs):
    """Softmax of the causal scores, [B, Hq, Sq, Sk]."""
    key = inputs.key.double().repeat_interleave(case.heads // case.kv_heads, 1)
    scores = inputs.query.double() @ key.transpose(-1, -2) * case.scale
    future = torch.ones(case.q_len, case.kv_len, dtype=torch.bool).triu(1 + case.q_offset)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(CASE, id="square"),
        pytest.param(CASE.but(q_len=30, q_offset=40), id="second-chunk"),
        pytest.param(CASE.but(q_len=300, kv_len=300, dtype=torch.bfloat16), id="several-row-groups"),
    ],
)
def test_cra_is_the_smallest_kept_probability_of_a_row(case):
    inputs = make_inputs(case)
    kept = blocks.unpack_bits(inputs.block_mask, -(-case.kv_len // 16))
    kept = kept.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, : case.q_len, : case.kv_len]
    expected = (causal_attention(case, inputs) * kept).sum(-1).amin(-1)
    cra = metrics.cra(
        inputs.query, inputs.key, inputs.block_mask, block_q=16, block_k=16, q_offset=case.q_offset
    )
    torch.testing.assert_close(cra, expected)


def test_rows_without_keys_do_not_lower_cra():
    case = CASE.but(batch=2, segments="left_padding", density=2.0)
    inputs = make_inputs(case)
    cra = metrics.cra(
        inputs.query, inputs.key, inputs.block_mask, block_q=16, block_k=16, key_segment=inputs.key_segment
    )
    torch.testing.assert_close(cra, torch.ones(2, 4, dtype=torch.float64))


@given(alpha=st.floats(0.0, 1.0), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_sparsity_degree_drops_the_most_that_alpha_allows(alpha, seed):
    case = CASE.but(q_len=20, kv_len=20)
    inputs = make_inputs(case, seed)
    attention = causal_attention(case, inputs)[0]
    degree = metrics.sparsity_degree(inputs.query, inputs.key, alpha)
    for head in range(case.heads):
        kept = 0
        for row in range(case.q_len):
            largest = sorted(attention[head, row, : row + 1].tolist(), reverse=True)
            fewest = next((n for n in range(row + 1) if sum(largest[:n]) >= alpha), row + 1)
            kept += row + 1 if alpha == 1.0 else fewest
        assert degree[0, head].item() == pytest.approx(1 - kept / (20 * 21 / 2), abs=1e-9)


def test_sparsity_degree_falls_with_alpha():
    inputs = make_inputs(CASE)
    degrees = [
        metrics.sparsity_degree(inputs.query, inputs.key, alpha) for alpha in (0.0, 0.5, 0.9, 0.99, 1.0)
    ]
    assert all((low >= high).all() for low, high in zip(degrees, degrees[1:], strict=False))
    assert (degrees[0] == 1).all() and (degrees[-1] == 0).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_sparsity_degree_refuses_an_alpha_out_of_range(alpha):
    inputs = make_inputs(CASE)
    with pytest.raises(ValueError, match=r"'alpha' must be in \[0, 1\]"):
        metrics.sparsity_degree(inputs.query, inputs.key, alpha)
