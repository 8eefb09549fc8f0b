"""Which kernels take the head dims of a model, on the GPU that has the most of them."""

from __future__ import annotations

import torch

from sa_compile.kernels import choice
from sa_compile.kernels.defaults import ADAPTIVE_LANDMARKS, ADAPTIVE_PEAK
from sa_compile.passes.conditions.kernels import MAX_HEAD_DIM

_LOOKED_FOR = "select_peaks" if ADAPTIVE_PEAK < 1 else "select_adaptive"
_SELECTION = ("block_representatives", _LOOKED_FOR, "select_budget_rest")
_SHORT = {"cuda_sm90": "sm90"}
_BLOCK = 128


def kernels_of(head_dim: int, value_head_dim: int) -> str:
    """The kernels of attention and of the default's selection, in bf16 on Hopper; asked without a GPU.

    "sm90": written for Hopper; "triton": Triton's, for all or some of it; "none": larger than what is sampled
    at all. Where attention and selection differ: "attention / selection".
    """
    if max(head_dim, value_head_dim) > MAX_HEAD_DIM:
        return "none"
    attention = _kernel("block_sparse_attention", (head_dim, value_head_dim))
    of_keys, of_both = (head_dim, head_dim), (head_dim, value_head_dim)
    selection = {_kernel(op, of_both if op == "select_budget_rest" else of_keys) for op in _SELECTION}
    names = [attention, "sm90" if selection == {"sm90"} else "triton"]
    return names[0] if len(set(names)) == 1 else " / ".join(names)


def _kernel(op: str, head_dims: tuple[int, int]) -> str:
    members = 1 + ADAPTIVE_LANDMARKS if op in _SELECTION[:2] else None
    device, block_q = torch.device("cuda"), None if op == "block_representatives" else _BLOCK
    call = choice.Call(op, device, torch.bfloat16, head_dims, block_q, _BLOCK, members)
    name = choice.on_hopper(call)
    return _SHORT.get(name, name)
