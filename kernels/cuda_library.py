"""What runs on CUDA tensors: the CUDA library where it has a kernel, else PyTorch, or Triton on request.

The Triton kernels have so far run in Triton's interpreter only, so they have to be asked for with the
environment variable ``SAMPLEATTN_TRITON=1`` before the first import. The choice is a function of device,
dtype, head dims and block sizes alone (:func:`attention_kernel`), so that a report can show it without
running anything.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from . import eager, eager_adaptive

# Head dims (of query and key, of value) that the sm_90a kernels are compiled for.
SM90_HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256))
SM90_DTYPES = (torch.bfloat16, torch.float16)
SM90_BLOCK_Q = (128,)
SM90_BLOCK_K = (64, 128)
# float32 tiles of these kernels spill or do not fit into shared memory: PyTorch's products are faster.
TRITON_DTYPES = (torch.bfloat16, torch.float16)


@lru_cache(maxsize=1)
def load() -> bool:
    """Load the CUDA library (ops of the namespace ``sampleattn_cuda``); False if it is not installed."""
    spec = importlib.util.find_spec(f"{__package__}._C_cuda")
    if torch.version.cuda is None or spec is None or spec.origin is None:
        return False
    torch.ops.load_library(spec.origin)
    return True


@lru_cache(maxsize=1)
def uses_triton() -> bool:
    """Were the Triton kernels asked for? Raises ImportError if they were and Triton is not installed."""
    wanted = os.environ.get("SAMPLEATTN_TRITON", "0")
    if wanted not in ("0", "1"):
        raise ValueError(f"SAMPLEATTN_TRITON must be 0 or 1, got {wanted!r}")
    if wanted == "1" and importlib.util.find_spec("triton") is None:
        raise ImportError("SAMPLEATTN_TRITON=1 needs the package triton, which is not installed")
    return wanted == "1"


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def attention_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, head_dim_v: int, block_q: int, block_k: int
) -> str:
    """What ``block_sparse_attention`` runs: "cuda_sm90", "triton" or "pytorch"."""
    if (
        load()
        and _capability(device) == (9, 0)
        and dtype in SM90_DTYPES
        and (head_dim, head_dim_v) in SM90_HEAD_DIMS
        and block_q in SM90_BLOCK_Q
        and block_k in SM90_BLOCK_K
    ):
        return "cuda_sm90"
    return "triton" if uses_triton() and dtype in TRITON_DTYPES else "pytorch"


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
        run = torch.ops.sampleattn_cuda.block_sparse_attention.default
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
    if query.dtype in TRITON_DTYPES:
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
    from .triton import selection

    return selection.select_blocks(
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
    if key.dtype in TRITON_DTYPES:
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
    if query.dtype in TRITON_DTYPES:
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
    implement("block_sparse_attention", "CUDA", block_sparse_attention)
    if uses_triton():
        implement("sample_scores", "CUDA", sample_scores)
        implement("select_blocks", "CUDA", select_blocks)
        implement("block_representatives", "CUDA", block_representatives)
        implement("select_adaptive", "CUDA", select_adaptive)
