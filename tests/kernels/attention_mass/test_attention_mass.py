"""attention_mass: the share of exact attention that lies in kept blocks, over sampled rows."""

import pytest
import torch
from support.attention_inputs import make_inputs
from support.implementations import eager, reference
from support.sampling_cases import BASE, CASES, TOLERANCE, arguments

from sa_compile import metrics
from sa_compile.kernels import ops


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
