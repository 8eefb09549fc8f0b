"""``block_rest_attention`` on the GPU, of what ``select_budget_rest`` gives there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import GRID
from gpu.kernels import FACTOR, LSE_ERROR, poison_free_memory, skip_without
from support.implementations import eager, reference

from sa_compile.kernels import ops
from sa_compile.kernels.block_rest_attention.op import Arguments
from sa_compile.kernels.choice import CUDA_HEAD_DIMS, preferring

SHAPES = ("square", "ragged_bshd", "unaligned_offset", "left_padding", "sinks", "one_sink_padded")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "name, head_dims",
    [*((name, (128, 128)) for name in SHAPES), *(("ragged_bshd", dims) for dims in CUDA_HEAD_DIMS[:-1])],
    ids=str,
)
def test_the_rest_joins_hoppers_attention(
    name: str, head_dims: tuple[int, int], dtype: torch.dtype, cuda: str
) -> None:
    pytest.importorskip("triton")
    case = GRID[name].with_(head_dim=head_dims[0], value_head_dim=head_dims[1], dtype=dtype, density=0.3)
    x = attention_cases.random_inputs(case, cuda, seed=9)
    poison_free_memory()
    with preferring("cuda_sm90", "triton"):
        skip_without("cuda_sm90")
        where = {"key_segment": x.key_segment, "q_offset": case.q_offset}
        bounds = {"budget": 0.8, "tau": 9.0, "keep_sink": False, "window_slashes": 1}
        chosen = ops.select_budget_rest(x.query, x.key, x.value, x.block_mask, **where, **bounds)
        given = Arguments(
            *(x.query, x.key, x.value, *chosen, x.key_segment, x.sinks),
            *(case.head_dim**-0.5, 0.5, case.q_offset, case.block_q, case.block_k),
        )
        out, lse = ops.block_rest_attention_op(*given)
    exact, exact_lse = reference.block_rest_attention(
        *given._replace(key=x.key.nan_to_num(), value=x.value.nan_to_num())
    )
    kept = replace(x, block_mask=chosen[0])
    of_kept, _ = attention_cases.oracle(kept, case)
    dense_error = attention_cases.same_precision_error(kept, case, of_kept)
    eager_error = attention_cases.relative_error(eager.block_rest_attention(*given)[0], exact)
    assert chosen[2].max() > 0.2, "little is left out"
    assert out.transpose(1, 2).is_contiguous()
    # Of kept blocks and then of both: the output is rounded twice.
    assert attention_cases.relative_error(out, exact) <= FACTOR * (dense_error + eager_error)
    empty = exact_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty) and (out[empty] == 0).all()
    assert (lse.double() - exact_lse)[~empty].abs().max() <= LSE_ERROR
