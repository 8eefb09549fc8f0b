"""The ops on CUDA tensors: each call goes to the kernel that ``choice`` names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import choice, eager, eager_adaptive
from .choice import Call


def attention_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, head_dim_v: int, block_q: int, block_k: int
) -> str:
    """What ``block_sparse_attention`` runs, a key of ``choice.KERNELS``; ValueError if nothing may."""
    return choice.choose(
        Call("block_sparse_attention", device, dtype, (head_dim, head_dim_v), block_q, block_k)
    )


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
    kernel = attention_kernel(query.device, query.dtype, query.shape[-1], value.shape[-1], block_q, block_k)
    run: Callable
    # The native kernels keep a running maximum of unscaled scores, which a scale below zero would turn round.
    if kernel == "pytorch" or scale <= 0:
        run = eager.block_sparse_attention
    elif kernel == "triton":
        from .triton import attention

        run = attention.block_sparse_attention
    else:
        run = getattr(torch.ops.sampleattn_cuda, str(choice.KERNELS[kernel].library_op)).default
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


def sample_scores(
    query: Tensor,
    key: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    chunk_n: int,
    sample_rows: int,
    block_k: int,
) -> tuple[Tensor, Tensor]:
    """The op ``sample_scores`` on CUDA tensors (see ``ops``)."""
    run: Callable = eager.sample_scores
    if choice.choose(Call("sample_scores", query.device, query.dtype)) == "triton":
        from .triton import sampling

        run = sampling.sample_scores
    return run(query, key, key_segment, scale, q_offset, chunk_n, sample_rows, block_k)


def select_blocks(
    column_scores: Tensor,
    slash_scores: Tensor,
    key_segment: Tensor | None,
    q_len: int,
    k_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    alpha_c: float,
    alpha_s: float,
    keep_sink: bool,
    window_slashes: int,
) -> Tensor:
    """The op ``select_blocks`` on CUDA tensors (see ``ops``)."""
    run: Callable = eager.select_blocks
    if choice.choose(Call("select_blocks", column_scores.device)) == "triton":
        from .triton import selection

        run = selection.select_blocks
    return run(
        column_scores,
        slash_scores,
        key_segment,
        q_len,
        k_len,
        q_offset,
        block_q,
        block_k,
        alpha_c,
        alpha_s,
        keep_sink,
        window_slashes,
    )


def block_representatives(
    key: Tensor, key_segment: Tensor | None, block_k: int, landmarks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The op ``block_representatives`` on CUDA tensors (see ``ops``)."""
    run: Callable = eager_adaptive.block_representatives
    if choice.choose(Call("block_representatives", key.device, key.dtype)) == "triton":
        from .triton import adaptive

        run = adaptive.block_representatives
    return run(key, key_segment, block_k, landmarks)


def select_adaptive(
    query: Tensor,
    key: Tensor,
    representatives: Tensor,
    log_weights: Tensor,
    spreads: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    block_q: int,
    block_k: int,
    tau: float,
    keep_sink: bool,
    window_slashes: int,
) -> Tensor:
    """The op ``select_adaptive`` on CUDA tensors (see ``ops``)."""
    run: Callable = eager_adaptive.select_adaptive
    if choice.choose(Call("select_adaptive", query.device, query.dtype)) == "triton":
        from .triton import adaptive

        run = adaptive.select_adaptive
    return run(
        query,
        key,
        representatives,
        log_weights,
        spreads,
        key_segment,
        scale,
        q_offset,
        block_q,
        block_k,
        tau,
        keep_sink,
        window_slashes,
    )


def register(implement: Callable[[str, str, Callable], None]) -> None:
    """Register the implementations with ``implement(op, dispatch key, function)``; nothing without CUDA."""
    if torch.version.cuda is None:
        return
    for function in (
        block_sparse_attention,
        sample_scores,
        select_blocks,
        block_representatives,
        select_adaptive,
    ):
        implement(function.__name__, "CUDA", function)
