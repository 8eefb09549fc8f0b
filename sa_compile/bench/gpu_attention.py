"""Block-sparse attention on a GPU against FlexAttention and dense SDPA, on the same block lists in one run.

    python -m sa_compile.bench.gpu_attention --out results.json

A case's competitors take turns for several rounds, for a GPU that computes steadily lowers its clocks: what
is measured first would look better. Times are medians of CUDA events, in milliseconds. B=1, Hq=32, Hkv=8,
bf16, causal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sa_compile.kernels import blocks, ops
from sa_compile.provenance import provenance

BLOCK = 128
HEADS, HEADS_KV = 32, 8
ROUNDS = 4


@dataclass(frozen=True)
class Case:
    """One row of the benchmark. ``pattern``: random | strips; ``against``: the competitors to time."""

    length: int
    density: float
    pattern: str = "random"
    head_dim: int = 128
    block_k: int = BLOCK
    against: tuple[str, ...] = ()
    repeats: int = 4


CASES = (
    Case(131072, 0.1, against=("flex",)),
    Case(131072, 0.1, pattern="strips"),
    Case(131072, 0.1, block_k=64),
    Case(131072, 0.1, head_dim=64),
    Case(131072, 0.1, head_dim=256),
    Case(32768, 0.1, against=("flex",), repeats=8),
    Case(8192, 0.102, against=("flex",), repeats=20),
    Case(32768, 1.0, against=("flex", "cudnn", "fa2")),
    Case(131072, 1.0, against=("cudnn",), repeats=1),
)


def milliseconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """Times of ``run`` on the current CUDA stream, after one call that is not timed."""
    run()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


def random_blocks(heads: int, n_q: int, n_k: int, density: float, seed: int = 0) -> Tensor:
    """Bool [1, heads, n_q, n_k] up to the diagonal, which is kept, as is key block 0."""
    random = torch.Generator("cuda").manual_seed(seed)
    kept = torch.rand(1, heads, n_q, n_k, generator=random, device="cuda") < density
    kept[..., 0] = True
    return _with_diagonal(kept)


def strip_blocks(heads: int, n_q: int, n_k: int, density: float, seed: int = 0) -> Tensor:
    """Like :func:`random_blocks`, but whole columns and slashes, as selection makes them (n_q == n_k)."""
    random = torch.Generator("cuda").manual_seed(seed)
    index = torch.arange(n_k, device="cuda")
    column = torch.rand(1, heads, n_k, generator=random, device="cuda") < density / 2
    slash = torch.rand(1, heads, n_k, generator=random, device="cuda") < density / 2
    column[..., 0] = True
    distance = (index[:, None] - index[None, :]).clamp_min(0)
    return _with_diagonal(column[..., None, :] | slash[..., distance])


def _with_diagonal(kept: Tensor) -> Tensor:
    n_q, n_k = kept.shape[-2:]
    own = torch.arange(n_k, device="cuda") // (n_k // n_q)
    row = torch.arange(n_q, device="cuda")[:, None]
    return (kept | (own == row)) & (own <= row)


def kept_flops(kept: Tensor, head_dim: int) -> float:
    """Floating-point operations of the kept blocks; half of a diagonal block is masked."""
    n_q, n_k = kept.shape[-2:]
    diagonal = kept.shape[1] * n_k
    return (kept.sum().item() - diagonal / 2) * 4 * BLOCK * (BLOCK * n_q / n_k) * head_dim


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


def competitors(case: Case, query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> dict[str, Callable]:
    """What is timed for a case, by name; "sa_compile" comes first."""
    mask = blocks.pack_bits(kept)
    runs: dict[str, Callable] = {
        "sa_compile": lambda: ops.block_sparse_attention(query, key, value, mask, block_k=case.block_k)
    }
    if "flex" in case.against:
        runs["flex"] = flex_attention_runner(query, key, value, kept)
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("fa2", SDPBackend.FLASH_ATTENTION)):
        if name in case.against:
            runs[name] = sdpa_runner(backend, query, key, value)
    return runs


def measure(case: Case) -> dict[str, Any]:
    """Median milliseconds and effective TFLOP/s of everything a case compares."""
    torch.manual_seed(case.length)

    def tensor(heads: int) -> Tensor:
        return torch.randn(1, heads, case.length, case.head_dim, device="cuda", dtype=torch.bfloat16)

    query, key, value = tensor(HEADS), tensor(HEADS_KV), tensor(HEADS_KV)
    pattern = random_blocks if case.pattern == "random" else strip_blocks
    n_q, n_k = case.length // BLOCK, case.length // case.block_k
    kept = pattern(HEADS, n_q, n_k, case.density)
    runs = competitors(case, query, key, value, kept)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name] += milliseconds(run, case.repeats)
    flops = kept_flops(kept, case.head_dim)
    share = kept.sum().item() / (HEADS * (n_k / n_q) * n_q * (n_q + 1) / 2)
    return {
        **asdict(case),
        "kept": share,
        "milliseconds": {name: statistics.median(found) for name, found in times.items()},
        "tflops": {name: flops / statistics.median(found) / 1e9 for name, found in times.items()},
    }


def measure_selection(length: int) -> dict[str, Any]:
    """Median milliseconds of sampling and selection with the default settings."""
    query = torch.randn(1, HEADS, length, 128, device="cuda", dtype=torch.bfloat16)
    key = torch.randn(1, HEADS_KV, length, 128, device="cuda", dtype=torch.bfloat16)
    scores = ops.sample_scores(query, key)
    return {
        "length": length,
        "sample_scores": statistics.median(milliseconds(lambda: ops.sample_scores(query, key), 20)),
        "select_blocks": statistics.median(
            milliseconds(lambda: ops.select_blocks(*scores, q_len=length, k_len=length), 20)
        ),
    }


def main() -> None:
    """Measure every case and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--commit", help="commit to record where there is no git checkout")
    options = parser.parse_args()
    out = options.out
    source = provenance("cuda", revision=options.commit, command=" ".join(sys.argv))
    results: dict[str, Any] = {**source, "attention": [], "selection": []}
    for case in CASES:
        row = measure(case)
        results["attention"].append(row)
        times = " ".join(
            f"{name} {time:.3f} ms ({row['tflops'][name]:.0f} TFLOP/s)"
            for name, time in row["milliseconds"].items()
        )
        print(
            f"{case.length} d={case.head_dim} block_k={case.block_k} {case.pattern} "
            f"kept {row['kept']:.3f}: {times}",
            flush=True,
        )
        out.write_text(json.dumps(results, indent=1))
    for length in (32768, 131072):
        row = measure_selection(length)
        results["selection"].append(row)
        print(row, flush=True)
    out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
