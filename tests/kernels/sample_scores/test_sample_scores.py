"""sample_scores: exact softmax of the sampled rows, reduced to key blocks."""

import pytest
import torch
from support.attention_inputs import make_inputs
from support.implementations import eager, reference
from support.sampling_cases import BASE, CASES, TOLERANCE, arguments

from sa_compile.kernels import ops
from sa_compile.kernels.shared import eager as shared_eager


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


@pytest.mark.parametrize(
    "sample", [pytest.param(ops.sample_scores_op, id="op"), pytest.param(eager.sample_scores, id="eager")]
)
def test_rows_in_many_groups_equal_one_group(sample, monkeypatch):
    case = BASE.but(q_len=600, kv_len=600, batch=2, block_k=16)
    inputs = make_inputs(case)
    monkeypatch.setattr(shared_eager, "SCORE_BYTES", 1)
    scores = sample(inputs.query, inputs.key, None, case.scale, 0, 2, 128, case.block_k)
    expected = reference.sample_scores(inputs.query, inputs.key, None, case.scale, 0, 2, 128, case.block_k)
    for got, exact in zip(scores, expected, strict=True):
        torch.testing.assert_close(got.double(), exact, **TOLERANCE)


def test_columns_of_one_fully_sampled_chunk_are_the_mean_attention():
    case = BASE.but(q_len=64, kv_len=64, causal=True)
    inputs = make_inputs(case)
    column, slash = ops.sample_scores(inputs.query, inputs.key, chunk_n=1, sample_rows=32, block_k=64)
    torch.testing.assert_close(column, torch.ones(1, 2, 1))
    torch.testing.assert_close(slash, torch.ones(1, 2, 1))
