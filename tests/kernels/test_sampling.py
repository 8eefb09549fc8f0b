"""sample_scores and attention_mass: exact softmax of the sampled rows, reduced to key blocks."""

from typing import Any

import pytest
import torch
from support.attention_inputs import Case, make_inputs
from support.implementations import eager, reference

from sa_compile import metrics
from sa_compile.kernels import ops
from sa_compile.kernels.shared import eager as shared_eager

BASE = Case(q_len=200, k_len=200)
CASES = [
    pytest.param(BASE, 2, 32, id="fp32"),
    pytest.param(BASE.but(dtype=torch.bfloat16), 2, 32, id="bf16"),
    pytest.param(BASE.but(dtype=torch.float16, heads=6, kv_heads=3), 2, 32, id="fp16-gqa"),
    pytest.param(BASE.but(batch=3, segments="left_padding"), 2, 32, id="left-padding"),
    pytest.param(BASE.but(batch=3, segments="right_padding"), 2, 32, id="right-padding"),
    pytest.param(BASE, 1, 200, id="every-row"),
    pytest.param(BASE, 37, 1, id="one-row-a-chunk"),
    pytest.param(BASE, 2, 1000, id="chunks-shorter-than-the-sample"),
    pytest.param(BASE.but(q_len=5, k_len=200, q_offset=195), 9, 2, id="more-chunks-than-rows"),
    pytest.param(BASE.but(q_len=70, k_len=200, q_offset=130, block_k=16), 3, 8, id="second-chunk"),
    pytest.param(BASE.but(q_len=200, k_len=70, q_offset=-130), 2, 128, id="rows-before-the-first-key"),
    pytest.param(BASE.but(q_len=200, k_len=70), 2, 32, id="positions-past-the-last-key"),
    pytest.param(BASE.but(head_dim=19, block_k=128, block_q=128), 2, 33, id="odd-sizes"),
]
# The native kernel sums in another order than the oracle; both are fp32 softmax masses in [0, 1].
TOLERANCE: dict[str, Any] = {"rtol": 0, "atol": 3e-6}


def arguments(case, inputs, chunk_n, sample_rows):
    return inputs.key_segment, case.scale, case.q_offset, chunk_n, sample_rows


@pytest.mark.parametrize(("case", "chunk_n", "sample_rows"), CASES)
@pytest.mark.parametrize(
    "op", [pytest.param(ops.sample_scores_op, id="op"), pytest.param(eager.sample_scores, id="eager")]
)
def test_scores_equal_the_oracle(op, case, chunk_n, sample_rows):
    inputs = make_inputs(case)
    rest = arguments(case, inputs, chunk_n, sample_rows)
    expected = reference.sample_scores(inputs.query, inputs.key, *rest, case.block_k)
    for scores, exact in zip(op(inputs.query, inputs.key, *rest, case.block_k), expected, strict=True):
        assert scores.dtype == torch.float32 and scores.is_contiguous()
        torch.testing.assert_close(scores.double(), exact, **TOLERANCE)


@pytest.mark.parametrize(("case", "chunk_n", "sample_rows"), CASES)
@pytest.mark.parametrize(
    "op", [pytest.param(ops.attention_mass_op, id="op"), pytest.param(eager.attention_mass, id="eager")]
)
def test_mass_equals_the_oracle(op, case, chunk_n, sample_rows):
    inputs = make_inputs(case)
    rest = (*arguments(case, inputs, chunk_n, sample_rows), case.block_q, case.block_k)
    mass = op(inputs.query, inputs.key, inputs.block_mask, *rest)
    exact = reference.attention_mass(inputs.query, inputs.key, inputs.block_mask, *rest)
    torch.testing.assert_close(mass.double(), exact, **TOLERANCE)


@pytest.mark.parametrize(
    "sample", [pytest.param(ops.sample_scores_op, id="op"), pytest.param(eager.sample_scores, id="eager")]
)
def test_rows_in_many_groups_equal_one_group(sample, monkeypatch):
    case = BASE.but(q_len=600, k_len=600, batch=2, block_k=16)
    inputs = make_inputs(case)
    monkeypatch.setattr(shared_eager, "SCORE_BYTES", 1)
    scores = sample(inputs.query, inputs.key, None, case.scale, 0, 2, 128, case.block_k)
    expected = reference.sample_scores(inputs.query, inputs.key, None, case.scale, 0, 2, 128, case.block_k)
    for got, exact in zip(scores, expected, strict=True):
        torch.testing.assert_close(got.double(), exact, **TOLERANCE)


def test_columns_of_one_fully_sampled_chunk_are_the_mean_attention():
    case = BASE.but(q_len=64, k_len=64, causal=True)
    inputs = make_inputs(case)
    column, slash = ops.sample_scores(inputs.query, inputs.key, chunk_n=1, sample_rows=32, block_k=64)
    torch.testing.assert_close(column, torch.ones(1, 2, 1))
    torch.testing.assert_close(slash, torch.ones(1, 2, 1))


def test_mass_over_all_rows_is_cra():
    case = BASE.but(batch=2, segments="left_padding")
    inputs = make_inputs(case)
    mass = ops.attention_mass(
        inputs.query,
        inputs.key,
        inputs.block_mask,
        key_segment=inputs.key_segment,
        chunk_n=1,
        sample_rows=case.q_len,
        block_q=case.block_q,
        block_k=case.block_k,
    )
    exact = metrics.cra(
        inputs.query,
        inputs.key,
        inputs.block_mask,
        key_segment=inputs.key_segment,
        block_q=case.block_q,
        block_k=case.block_k,
    )
    torch.testing.assert_close(mass.double(), exact, **TOLERANCE)
