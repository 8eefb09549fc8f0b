"""What the ops that sample rows are tried on: a case, chunks, rows of each."""

from typing import Any

import pytest
import torch
from support.attention_inputs import Case

BASE = Case(q_len=200, kv_len=200)
CASES = [
    pytest.param(BASE, 2, 32, id="fp32"),
    pytest.param(BASE.but(dtype=torch.bfloat16), 2, 32, id="bf16"),
    pytest.param(BASE.but(dtype=torch.float16, heads=6, kv_heads=3), 2, 32, id="fp16-gqa"),
    pytest.param(BASE.but(batch=3, segments="left_padding"), 2, 32, id="left-padding"),
    pytest.param(BASE.but(batch=3, segments="right_padding"), 2, 32, id="right-padding"),
    pytest.param(BASE, 1, 200, id="every-row"),
    pytest.param(BASE, 37, 1, id="one-row-a-chunk"),
    pytest.param(BASE, 2, 1000, id="chunks-shorter-than-the-sample"),
    pytest.param(BASE.but(q_len=5, kv_len=200, q_offset=195), 9, 2, id="more-chunks-than-rows"),
    pytest.param(BASE.but(q_len=70, kv_len=200, q_offset=130, block_k=16), 3, 8, id="second-chunk"),
    pytest.param(BASE.but(q_len=200, kv_len=70, q_offset=-130), 2, 128, id="rows-before-the-first-key"),
    pytest.param(BASE.but(q_len=200, kv_len=70), 2, 32, id="positions-past-the-last-key"),
    pytest.param(BASE.but(head_dim=19, block_k=128, block_q=128), 2, 33, id="odd-sizes"),
]
# The native kernel sums in another order than the oracle; both are fp32 softmax masses in [0, 1].
TOLERANCE: dict[str, Any] = {"rtol": 0, "atol": 3e-6}


def arguments(case, inputs, chunk_n, sample_rows):
    """Those of the ops between the tensors and the block sizes."""
    return inputs.key_segment, case.scale, case.q_offset, chunk_n, sample_rows
