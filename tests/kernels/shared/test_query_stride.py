"""Query blocks that stand apart: what an op finds for a rank's blocks is what it finds for them among all."""

import pytest
import torch
from support.implementations import eager, reference
from support.query_stride import Ops, check, operands

from sa_compile.kernels import ops
from sa_compile.kernels.shared import rows
from sa_compile.kernels.shared.shapes import row_positions

SIZES = [
    pytest.param((16, 16), id="16-16"),
    pytest.param((32, 16), id="32-16"),
    pytest.param((16, 32), id="keys-wider"),
]
SEGMENTS = ["none", "left_padding", "right_padding"]


@pytest.mark.parametrize("start", [0, 37])
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("run", [Ops(), eager, reference], ids=["op", "eager", "oracle"])
def test_a_ranks_blocks_are_those_of_all(run, sizes, segments, start):
    check(run, sizes, segments, start)


def test_positions_and_the_ends_of_prompts_follow_the_stride():
    row = torch.arange(10)
    assert row_positions(row, 2, 3, 4).tolist() == [2, 3, 4, 5, 14, 15, 16, 17, 26, 27]
    segment = torch.zeros(1, 28, dtype=torch.int32)
    segment[:, 16:] = -1
    assert rows.row_ends(segment, 10, 2, torch.device("cpu"), 3, 4).tolist() == [6]


STRIDED = ["select_adaptive", "select_peaks", "select_budget", "mask_blocks", "block_sparse_attention"]


@pytest.mark.parametrize("op", STRIDED)
def test_a_stride_below_one_is_an_error_that_says_so(op):
    query, key, value, _ = operands(16, "none")
    given = {"q_stride": 0, "block_q": 16, "block_k": 16}
    with pytest.raises(ValueError, match="'q_stride' must be >= 1, got 0"):
        if op in ("select_adaptive", "select_peaks"):
            getattr(ops, op)(query, key, ops.block_representatives(key, block_k=16), **given)
        elif op == "select_budget":
            ops.select_budget(query, key, budget=0.1, tau=0.1, **given)
        elif op == "mask_blocks":
            ops.mask_blocks(query, key, **given)
        else:
            index = torch.zeros(1, 1, 10, 2, dtype=torch.int32)
            ops.block_sparse_attention(query, key, value, index, **given)
