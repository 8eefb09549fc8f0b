"""The ops on CUDA tensors: each call goes to the kernel that ``choice`` names."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from . import choice
from .block_mean_attention import eager as block_mean_attention_eager
from .block_sparse_attention import eager as block_sparse_attention_eager
from .choice import Call


def attention_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, head_dim_v: int, block_q: int, block_k: int
) -> str:
    """What ``block_sparse_attention`` runs, a key of ``choice.KERNELS``; ValueError if nothing may."""
    return choice.choose(_attention_call(device, dtype, head_dim, head_dim_v, block_q, block_k))


def _attention_call(
    device: torch.device, dtype: torch.dtype, head_dim: int, head_dim_v: int, block_q: int, block_k: int
) -> Call:
    return Call("block_sparse_attention", device, dtype, (head_dim, head_dim_v), block_q, block_k)


def _implementation(call: Call, module: str, plain: Callable, scale: float = 1.0) -> Callable:
    """What computes a call: ``plain`` PyTorch, the function of the op's name in the Triton ``module`` (its
    place in this package), or an op of the CUDA library.

    Native attention and adaptive selection order or mask scores before they scale them, which a scale of zero
    or less would turn round: those go to PyTorch whatever is preferred.
    """
    kernel = choice.choose(call)
    if kernel == "pytorch" or scale <= 0:
        return plain
    if kernel == "triton":
        return getattr(importlib.import_module(f".{module}", __package__), call.op)
    return choice.library_op(kernel, call.op)


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    scale: float,
    causal: bool,
    q_offset: int,
    window: int,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor]:
    """The op ``block_sparse_attention`` on CUDA tensors (see ``ops``)."""
    call = _attention_call(query.device, query.dtype, query.shape[-1], value.shape[-1], block_q, block_k)
    run = _implementation(
        call, "block_sparse_attention.triton", block_sparse_attention_eager.block_sparse_attention, scale
    )
    return run(
        query,
        key,
        value,
        block_mask,
        query_segment,
        key_segment,
        scale,
        causal,
        q_offset,
        window,
        block_q,
        block_k,
    )


def whole_mean_attention(
    query: Tensor, value: Tensor, scale: float, block_q: int, block_k: int
) -> Callable | None:
    """The kernel that computes ``block_mean_attention`` at once, if one is preferred and fits; else None."""
    dims = query.shape[-1], value.shape[-1]
    call = Call("block_mean_attention", query.device, query.dtype, dims, block_q, block_k)
    kernel = choice.choose(call)
    return None if kernel in ("triton", "pytorch") or scale <= 0 else choice.library_op(kernel, call.op)


def add_block_means_(
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    block_q: int,
    block_k: int,
) -> None:
    """``block_mean_attention.eager.add_block_means_`` on CUDA tensors."""
    dims = query.shape[-1], value.shape[-1]
    call = Call("add_block_means", query.device, query.dtype, dims, block_q, block_k)
    add = _implementation(
        call, "block_mean_attention.triton", block_mean_attention_eager.add_block_means_, scale
    )
    add(out, lse, query, key, value, block_mask, key_segment, scale, q_offset, block_q, block_k)


def register(implement: Callable[[str, str, Callable], None]) -> None:
    """Register the implementations with ``implement(op, dispatch key, function)``; nothing without CUDA."""
    if torch.version.cuda is None:
        return
    implement("block_sparse_attention", "CUDA", block_sparse_attention)
