"""Every kernel against the float64 oracle, over the grid of shapes and masks."""

from __future__ import annotations

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import BASE, GRID
from gpu.kernels import ATTENTION_KERNELS, FACTOR, check, skip_without
from support.implementations import reference

from sa_compile.kernels import ops
from sa_compile.kernels.block_sparse_attention.reference import dense_attention
from sa_compile.kernels.choice import CUDA_HEAD_DIMS, preferring
from sa_compile.lab.bench.ops import competitors

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
BLOCK_K = pytest.mark.parametrize("block_k", [128, 64])
# What a head dim's own tiles and stages could get wrong; the rest does not depend on it.
HEAD_DIM_CASES = ["square", "ragged_bshd", "window", "left_padding", "packed", "few_blocks"]
WIDE = {"head_dim": 512, "value_head_dim": 512}  # on Hopper a kernel of its own


@pytest.fixture(params=ATTENTION_KERNELS)
def device(request: pytest.FixtureRequest, cuda: str):
    """The device, with one kernel forced after the other; skips one that this machine does not have."""
    if request.param == "triton":
        pytest.importorskip("triton")
    with preferring(request.param):
        skip_without(request.param)
        yield cuda


@BLOCK_K
@DTYPES
@pytest.mark.parametrize("name", GRID)
def test_every_shape_and_mask(name: str, dtype: torch.dtype, block_k: int, device: str) -> None:
    check(GRID[name].with_(dtype=dtype, block_k=block_k), device)


@BLOCK_K
@DTYPES
@pytest.mark.parametrize("name", HEAD_DIM_CASES)
@pytest.mark.parametrize("head_dims", [d for d in CUDA_HEAD_DIMS if d != (128, 128)], ids=str)
def test_every_head_dim(
    head_dims: tuple[int, int], name: str, dtype: torch.dtype, block_k: int, device: str
) -> None:
    case = GRID[name].with_(head_dim=head_dims[0], value_head_dim=head_dims[1], dtype=dtype, block_k=block_k)
    check(case, device)


@BLOCK_K
@DTYPES
@pytest.mark.parametrize("name", [name for name in GRID if name not in HEAD_DIM_CASES])
@pytest.mark.parametrize("device", ["cuda_sm90"], indirect=True)
def test_every_other_shape_and_mask_at_head_dim_512(
    name: str, dtype: torch.dtype, block_k: int, device: str
) -> None:
    check(GRID[name].with_(**WIDE, dtype=dtype, block_k=block_k), device)


@pytest.mark.parametrize("wide", [{}, WIDE], ids=["128", "512"])
@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
def test_scores_that_grow_along_the_keys_are_rescaled(descending: bool, wide: dict, device: str) -> None:
    case = BASE.with_(q_len=1024, kv_len=1024, density=1.0, **wide)
    inputs = attention_cases.random_inputs(case, device, seed=0)
    inputs.key *= torch.linspace(0.1, 40, 1024, device=device)[:, None].bfloat16()
    if descending:
        inputs.key, inputs.value = inputs.key.flip(2), inputs.value.flip(2)
    out, lse = ops.block_sparse_attention_op(*inputs.arguments(case))
    expected, expected_lse = attention_cases.oracle(inputs, case)
    assert attention_cases.relative_error(out, expected) < 1e-2
    assert (lse - expected_lse).abs().max() < 1e-2


def test_a_scale_that_is_not_positive_gives_the_oracles_result(device: str) -> None:
    inputs = attention_cases.random_inputs(BASE, device, seed=3)
    arguments = list(inputs.arguments(BASE))
    for scale in (0.0, -0.1):
        arguments[7] = scale
        out, lse = ops.block_sparse_attention_op(*arguments)
        expected, expected_lse = reference.block_sparse_attention(*arguments)
        assert attention_cases.relative_error(out, expected) < 1e-2
        torch.testing.assert_close(lse.double(), expected_lse, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "length, wide, dense",
    [(32768, {}, "cudnn"), (131072, {}, "cudnn"), (32768, WIDE, "efficient")],
    ids=["32k", "128k", "32k-512"],
)
def test_long_sequences_are_as_exact_as_sdpa(length: int, wide: dict, dense: str, device: str) -> None:
    """Sampled rows against float64, all blocks kept, so that one of SDPA's kernels computes the same."""
    case = BASE.with_(q_len=length, kv_len=length, density=1.0, **wide)
    inputs = attention_cases.random_inputs(case, device, seed=length)
    out, _ = ops.block_sparse_attention_op(*inputs.arguments(case))
    sdpa_out = competitors.dense_attention(dense, inputs.query, inputs.key, inputs.value)()
    for first in (0, length // 3, length - 32):
        rows = slice(first, first + 32)
        expected, _ = dense_attention(
            inputs.query[:, :, rows],
            inputs.key,
            inputs.value,
            scale=case.head_dim**-0.5,
            causal=True,
            q_offset=first,
        )
        error, dense_error = (
            attention_cases.relative_error(x[:, :, rows], expected) for x in (out, sdpa_out)
        )
        assert error <= FACTOR * dense_error, f"rows from {first}"
