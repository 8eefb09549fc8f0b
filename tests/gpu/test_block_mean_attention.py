"""``block_mean_attention`` on the GPU: in one kernel, and as Triton's means beside an attention kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import BASE, GRID, Case, Inputs
from gpu.kernels import LSE_ERROR, poison_free_memory
from support.implementations import reference
from torch import Tensor

from sa_compile.kernels import choice, ops
from sa_compile.kernels.block_mean_attention.eager import block_means
from sa_compile.kernels.choice import CUDA_MEAN_HEAD_DIMS, Call, preferring
from sa_compile.kernels.shared import blocks

KERNELS = ("cuda_sm90", "triton")
CAUSAL = [n for n, case in GRID.items() if case.causal and not case.window and case.segments != "packed"]
# Weights and means are rounded to the inputs' dtype; of PyTorch's result only the output is.
FACTOR = 3


@pytest.fixture(params=KERNELS)
def device(request: pytest.FixtureRequest, cuda: str):
    """The device, with one kernel forced after the other; skips one that this machine does not have."""
    if request.param == "triton":
        pytest.importorskip("triton")
    call = Call("block_mean_attention", torch.device(cuda), torch.bfloat16, (128, 128), 128, 128)
    with preferring(request.param):
        if not choice.fits(request.param, call):
            pytest.skip(f"{request.param} needs its GPU and a CUDA library built with it")
        yield cuda


def arguments(inputs: Inputs, case: Case) -> tuple:
    tensors = (inputs.query, inputs.key, inputs.value, inputs.block_mask, inputs.key_segment)
    return *tensors, inputs.sinks, case.head_dim**-0.5, case.q_offset, case.block_q, case.block_k


def in_pytorch(inputs: Inputs, case: Case) -> tuple[Tensor, Tensor]:
    with preferring("pytorch"):
        return ops.block_mean_attention_op(*arguments(inputs, case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("head_dims", CUDA_MEAN_HEAD_DIMS, ids=str)
@pytest.mark.parametrize("name", CAUSAL)
def test_every_shape_and_mask(name: str, head_dims: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    poison_free_memory()
    case = GRID[name].with_(head_dim=head_dims[0], value_head_dim=head_dims[1], dtype=dtype)
    inputs = attention_cases.random_inputs(case, device, seed=CAUSAL.index(name))
    out, lse = ops.block_mean_attention_op(*arguments(inputs, case))
    clean = replace(inputs, key=inputs.key.nan_to_num(), value=inputs.value.nan_to_num())
    exact, exact_lse = reference.block_mean_attention(*arguments(clean, case))
    empty = exact_lse == -torch.inf
    assert out.transpose(1, 2).is_contiguous()
    assert torch.equal(lse == -torch.inf, empty) and (out[empty] == 0).all()
    eager_error = attention_cases.relative_error(in_pytorch(inputs, case)[0], exact)
    assert attention_cases.relative_error(out, exact) <= FACTOR * eager_error + 1e-7
    if not empty.all():
        assert (lse.double() - exact_lse)[~empty].abs().max() <= LSE_ERROR


@pytest.mark.parametrize("head_dims", CUDA_MEAN_HEAD_DIMS, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.05], ids=["nothing kept", "few kept"])
def test_more_means_than_a_tile_holds(density: float, head_dims: tuple[int, int], device: str) -> None:
    case = BASE.with_(q_len=34000, kv_len=34000, density=density, heads=2, kv_heads=1)
    case = case.with_(head_dim=head_dims[0], value_head_dim=head_dims[1])
    inputs = attention_cases.random_inputs(case, device, seed=7)
    inputs.query *= 3
    out, lse = ops.block_mean_attention_op(*arguments(inputs, case))
    expected, expected_lse = in_pytorch(inputs, case)
    assert attention_cases.relative_error(out, expected.double()) < 1e-2
    torch.testing.assert_close(lse, expected_lse, atol=5e-3, rtol=0)


def test_with_every_block_kept_means_change_nothing(device: str) -> None:
    case = BASE.with_(q_len=700, kv_len=700, density=1.0)
    inputs = attention_cases.random_inputs(case, device, seed=2)
    out, lse = ops.block_mean_attention_op(*arguments(inputs, case))
    kept, kept_lse = ops.block_sparse_attention_op(*inputs.arguments(case))
    torch.testing.assert_close(out, kept, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(lse, kept_lse, atol=1e-3, rtol=0)


def test_a_value_that_is_not_finite_reaches_the_rows_that_drop_its_block_and_no_earlier_ones(
    device: str,
) -> None:
    case = BASE.with_(q_len=640, kv_len=640)
    inputs = attention_cases.random_inputs(case, device, seed=4)
    kept = torch.ones(1, 1, 5, 5, dtype=torch.bool, device=device).tril()
    kept[..., 4, 2] = kept[..., 3, 1] = False
    inputs = replace(inputs, block_mask=blocks.pack_bits(kept))
    inputs.value[:, :, 300] = float("nan")  # in block 2, which query block 3 keeps and 4 drops
    out, _ = ops.block_mean_attention_op(*arguments(inputs, case))
    assert out[:, :, 512:].isnan().all()
    assert out[:, :, :256].isfinite().all()


def test_the_means_of_the_cuda_library_are_those_of_pytorch(cuda: str) -> None:
    """Through what they give where nothing is kept and every query is zero: the mean of all means."""
    case = BASE.with_(q_len=512, kv_len=512, density=0.0, batch=2, segments="left_padding")
    inputs = attention_cases.random_inputs(case, cuda, seed=5)
    inputs.query.zero_()
    call = Call("block_mean_attention", torch.device(cuda), torch.bfloat16, (128, 128), 128, 128)
    if not choice.fits("cuda_sm90", call):
        pytest.skip("needs a Hopper GPU and the CUDA library built for it")
    whole = choice.library_op("cuda_sm90", "block_mean_attention")
    out, lse = whole(*arguments(inputs, case))
    _, values, counts, _ = block_means(inputs.key, inputs.value, inputs.key_segment, 128)
    weights = counts[..., :3].exp()
    expected = (weights[..., None] * values[:, :, :3]).sum(2) / weights.sum(-1)[..., None]
    expected = expected.repeat_interleave(case.heads // case.kv_heads, 1)
    torch.testing.assert_close(out[:, :, 400].float(), expected, atol=1e-2, rtol=2e-2)
    expected_lse = weights.sum(-1).log().expand(-1, case.heads)
    torch.testing.assert_close(lse[:, :, 400], expected_lse, atol=1e-3, rtol=0)
