"""Block-sparse attention on a GPU against FlexAttention and SDPA on the same block lists.

    python -m sa_compile.bench.gpu_attention --out results.json

Times are medians of CUDA events after a warm-up, in milliseconds. Random lists keep block 0 and the diagonal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sa_compile.kernels import blocks, ops

BLOCK = 128


def milliseconds(run: Callable[[], Any], repeats: int = 10) -> float:
    """Median time of ``run`` on the current CUDA stream."""
    for _ in range(2):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def random_blocks(heads: int, n_blocks: int, density: float, seed: int = 0) -> Tensor:
    """Bool [1, heads, n_blocks, n_blocks] below the diagonal, with block 0 and the diagonal kept."""
    random = torch.Generator("cuda").manual_seed(seed)
    kept = torch.rand(1, heads, n_blocks, n_blocks, generator=random, device="cuda") < density
    kept |= torch.eye(n_blocks, dtype=torch.bool, device="cuda")
    kept[..., 0] = True
    return kept.tril()


def strip_blocks(heads: int, n_blocks: int, density: float, seed: int = 0) -> Tensor:
    """Like :func:`random_blocks`, but whole columns and slashes, as selection makes them."""
    random = torch.Generator("cuda").manual_seed(seed)
    index = torch.arange(n_blocks, device="cuda")
    column = torch.rand(1, heads, n_blocks, generator=random, device="cuda") < density / 2
    slash = torch.rand(1, heads, n_blocks, generator=random, device="cuda") < density / 2
    column[..., 0] = True
    slash[..., 0] = True
    distance = (index[:, None] - index[None, :]).clamp_min(0)
    return (column[..., None, :] | slash[..., distance]).tril()


def density_of(kept: Tensor) -> float:
    """Kept share of the causal blocks."""
    n_blocks = kept.shape[-1]
    return kept.sum().item() / (kept.shape[0] * kept.shape[1] * n_blocks * (n_blocks + 1) / 2)


def effective_tflops(kept: Tensor, head_dim: int, time: float) -> float:
    """TFLOP/s counting 4 * 128 * 128 * head_dim for a kept block, half of it on the diagonal."""
    n_blocks = kept.shape[-1]
    diagonal = kept.diagonal(dim1=-2, dim2=-1).sum().item()
    full = kept.sum().item() - diagonal
    del n_blocks
    return (full + diagonal / 2) * 4 * BLOCK * BLOCK * head_dim / time / 1e9


def flex_attention_runner(query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> Callable[[], Tensor]:
    """FlexAttention's Triton kernel over the same blocks: the diagonal masked, the rest full."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    full = kept.clone()
    full.diagonal(dim1=-2, dim2=-1).fill_(False)
    partial = kept & ~full

    def lists(chosen: Tensor) -> tuple[Tensor, Tensor]:
        return chosen.sum(-1).int(), torch.argsort(chosen.int(), dim=-1, descending=True, stable=True).int()

    def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    length = query.shape[2]
    mask = BlockMask.from_kv_blocks(
        *lists(partial),
        *lists(full),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=causal,
        seq_lengths=(length, length),
        compute_q_blocks=False,
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(query, key, value, block_mask=mask, enable_gqa=True)


def sdpa_runner(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """Dense causal SDPA pinned to one backend."""

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )

    return run


def machine() -> dict[str, str]:
    """Device, versions, commit and command, for the record."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "commit": commit,
        "command": " ".join(sys.argv),
    }
