"""``block_rest_attention`` on the GPU, of what ``select_budget_rest`` gives there, and of rests made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import BASE, GRID
from gpu.kernels import FACTOR, LSE_ERROR, poison_free_memory, skip_without
from support.implementations import eager, reference
from torch import Tensor

from sa_compile.kernels import dispatch, ops
from sa_compile.kernels.block_rest_attention.op import NAME, Arguments, kernel
from sa_compile.kernels.choice import CUDA_REST_HEAD_DIMS, choose, preferring

SHAPES = ("square", "ragged_bshd", "unaligned_offset", "left_padding", "sinks", "one_sink_padded")
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
# In Hopper's attention, and in Triton added to what it gives.
KERNELS = pytest.mark.parametrize("adds", ["cuda_sm90", "triton"])


def attend(given: Arguments, adds: str) -> tuple[Tensor, Tensor]:
    """The op by one kernel; Hopper's is preferred, as it is by whoever names no order."""
    if adds == "triton":
        return dispatch.implementation(NAME, "triton")(given)
    call = kernel(given)
    assert call is not None and choose(call) == adds
    return ops.block_rest_attention_op(*given)


@KERNELS
@DTYPES
@pytest.mark.parametrize(
    "name, head_dims, block_k",
    [
        *((name, (128, 128), 128) for name in SHAPES),
        *(("ragged_bshd", dims, 128) for dims in CUDA_REST_HEAD_DIMS),
        *(("one_sink_padded", dims, 64) for dims in CUDA_REST_HEAD_DIMS),
    ],
    ids=str,
)
def test_the_rest_joins_hoppers_attention(
    name: str, head_dims: tuple[int, int], block_k: int, dtype: torch.dtype, adds: str, cuda: str
) -> None:
    pytest.importorskip("triton")
    sizes = {"head_dim": head_dims[0], "value_head_dim": head_dims[1], "block_k": block_k}
    case = GRID[name].with_(**sizes, dtype=dtype, density=0.3)
    x = attention_cases.random_inputs(case, cuda, seed=9)
    poison_free_memory()
    with preferring("cuda_sm90", "triton"):
        skip_without("cuda_sm90")
        where = {"key_segment": x.key_segment, "q_offset": case.q_offset, "block_k": block_k}
        bounds = {"budget": 0.8, "tau": 9.0, "keep_sink": False, "window_slashes": 1}
        chosen = ops.select_budget_rest(x.query, x.key, x.value, x.block_mask, **where, **bounds)
        given = Arguments(
            *(x.query, x.key, x.value, *chosen, x.key_segment, x.sinks),
            *(case.head_dim**-0.5, 0.5, case.q_offset, case.block_q, case.block_k),
        )
        out, lse = attend(given, adds)
    exact, exact_lse = reference.block_rest_attention(
        *given._replace(key=x.key.nan_to_num(), value=x.value.nan_to_num())
    )
    kept = replace(x, block_mask=chosen[0])
    of_kept, _ = attention_cases.oracle(kept, case)
    dense_error = attention_cases.same_precision_error(kept, case, of_kept)
    eager_error = attention_cases.relative_error(eager.block_rest_attention(*given)[0], exact)
    assert chosen[2].max() > 0.2, "little is left out"
    assert out.transpose(1, 2).is_contiguous()
    # In Triton, of kept blocks and then of both: the output is rounded twice.
    assert attention_cases.relative_error(out, exact) <= FACTOR * (dense_error + eager_error)
    empty = exact_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty) and (out[empty] == 0).all()
    assert (lse.double() - exact_lse)[~empty].abs().max() <= LSE_ERROR


@KERNELS
@DTYPES
@pytest.mark.parametrize("block_k", [128, 64])
@pytest.mark.parametrize("part", [0.5, 1.0])
def test_rests_of_every_kind_of_query_blocks_that_stand_apart(
    part: float, block_k: int, dtype: torch.dtype, adds: str, cuda: str
) -> None:
    """None, one that is not a number, one above what is kept, and sinks that leave all or nothing."""
    pytest.importorskip("triton")
    case = BASE.with_(batch=2, q_len=600, kv_len=1280, block_k=block_k, dtype=dtype)
    x = attention_cases.random_inputs(case, cuda, seed=4)
    torch.manual_seed(0)
    shape = (2, case.heads, 5)
    share = 0.8 * torch.rand(shape, device=cuda)
    value = share[..., None] * torch.randn(*shape, 128, device=cuda)
    level = torch.randn(shape, device=cuda)
    share[:, :, 1], value[:, :, 1], level[:, :, 2] = 0, torch.nan, 200.0
    share[:, 0, 3] = torch.nan
    sinks = torch.tensor([-100.0, 0.0, 3.0, 1000.0], device=cuda)
    given = Arguments(
        *(x.query, x.key, x.value, x.block_mask, value, share, level, None, sinks),
        *(128**-0.5, part, 128, 128, block_k, 2),
    )
    with preferring("cuda_sm90", "triton"):
        skip_without("cuda_sm90")
        out, lse = attend(given, adds)
        of_kept, lse_of_kept = ops.block_sparse_attention_op(*given.of_kept_blocks)
        eager_error = attention_cases.relative_error(
            eager.block_rest_attention(*given)[0], reference.block_rest_attention(*given)[0]
        )
    assert torch.equal(lse, lse_of_kept)
    for rows in (out[:, :, 128:256] == of_kept[:, :, 128:256], out[:, 0, 384:512] == of_kept[:, 0, 384:512]):
        assert rows.all()
    exact, _ = reference.block_rest_attention(*given)
    assert attention_cases.relative_error(out, exact) <= FACTOR * eager_error + 1e-6
    assert out[:, 3].float().abs().max() < 1e-20


def test_head_dim_512_is_left_to_triton_and_an_error_in_the_library(cuda: str) -> None:
    case = BASE.with_(head_dim=512, value_head_dim=512)
    x = attention_cases.random_inputs(case, cuda, seed=4)
    zeros = torch.zeros(1, case.heads, 4, device=cuda)
    rest = (zeros[..., None].expand(-1, -1, -1, 512), zeros, zeros)
    given = Arguments(x.query, x.key, x.value, x.block_mask, *rest, None, None, 0.1, 0.5, 0, 128, 128)
    with preferring("cuda_sm90", "triton"):
        skip_without("cuda_sm90")
        call = kernel(given)
        assert call is not None and choose(call) == "triton"
        with pytest.raises(RuntimeError, match="adds a rest for this head dim"):
            torch.ops.sampleattn_cuda.block_rest_attention_sm90(*given)
