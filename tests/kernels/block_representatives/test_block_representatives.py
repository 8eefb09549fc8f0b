"""block_representatives against its oracle, and which keys are landmarks."""

import pytest
import torch
from support.attention_inputs import EPSILON, SELECTION_CASES, make_inputs
from support.attention_inputs import SELECTION as BASE
from support.implementations import eager, reference

from sa_compile.kernels import ops

CASES = [
    *SELECTION_CASES,
    pytest.param(BASE.but(block_q=16, block_k=64), id="keys-wider-than-rows"),
]
REPRESENT = [
    pytest.param(ops.block_representatives_op, id="op"),
    pytest.param(eager.block_representatives, id="eager"),
]


@pytest.mark.parametrize("represent", REPRESENT)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("landmarks", [0, 5, 16])
def test_representatives_equal_the_oracle(represent, case, landmarks):
    inputs = make_inputs(case)
    arguments = (inputs.key, inputs.key_segment, case.block_k, landmarks)
    keys, log_weights, spreads = represent(*arguments)
    exact_keys, exact_weights, exact_spreads = reference.block_representatives(*arguments)
    assert keys.dtype == case.dtype and log_weights.dtype == spreads.dtype == torch.float32
    assert torch.equal(keys[:, :, 1:].double(), exact_keys[:, :, 1:])  # landmarks are the keys themselves
    bound = 1.01 * EPSILON[case.dtype] * exact_keys[:, :, 0].abs() + 1e-7
    assert ((keys[:, :, 0].double() - exact_keys[:, :, 0]).abs() <= bound).all()
    torch.testing.assert_close(log_weights.double(), exact_weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(spreads.double(), exact_spreads, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("represent", REPRESENT)
def test_landmarks_are_large_keys_that_point_elsewhere_than_those_before(represent):
    torch.manual_seed(0)
    key = 0.1 * torch.randn(1, 1, 64, 8)
    for at, (dim, norm) in enumerate([(0, 9.0), (0, 8.9), (0, 8.8), (1, 6.0), (2, 5.0)]):
        key[0, 0, 32 + at] = torch.nn.functional.one_hot(torch.tensor(dim), 8) * norm
    keys, _, _ = represent(key, None, 32, 3)
    # Of the second key 8.9^2 (1 - 3 / 4) = 19.8 is left beside the first, less than the 25 of the last.
    assert torch.equal(keys[0, 0, 1:, 1], key[0, 0, [32, 35, 36]])


@pytest.mark.parametrize("represent", REPRESENT)
def test_a_prompts_first_key_is_a_landmark_however_small_it_is(represent):
    key = torch.randn(2, 1, 48, 8)
    padding = torch.zeros(2, 48, dtype=torch.int32)
    padding[1, :20] = 1
    key[0, 0, 0] *= 1e-3
    key[1, 0, 20] *= 1e-3
    keys, _, _ = represent(key, padding, 16, 2)
    assert torch.equal(keys[0, 0, 1, 0], key[0, 0, 0])
    assert torch.equal(keys[1, 0, 1, 1], key[1, 0, 20])
    assert torch.equal(represent(key[:1], None, 16, 2)[0], keys[:1])
