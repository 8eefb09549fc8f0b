"""Query blocks that stand apart, on a GPU: the kernels that the ops choose, and Triton's."""

import pytest
import torch
from support.query_stride import Ops, check

from sa_compile.kernels import choice


@pytest.mark.parametrize("dim", [128, 512])
@pytest.mark.parametrize("segments", ["none", "left_padding", "right_padding"])
@pytest.mark.parametrize(
    "kernels", [("cuda_sm90", "triton", "pytorch"), ("triton", "pytorch")], ids=["cuda", "triton"]
)
def test_a_ranks_blocks_are_those_of_all(
    kernels: tuple[str, ...], segments: str, dim: int, cuda: str
) -> None:
    with choice.preferring(*kernels):
        check(
            Ops(),
            (128, 128),
            segments,
            37,
            torch.bfloat16,
            cuda,
            tolerance=2e-2,
            flips=2e-3,
            q_len=1500,
            dim=dim,
        )
