"""CPU ops against dense attention: ``python -m sa_compile bench cpu-ops [--json FILE]``.

One prefill of one layer: dense causal SDPA, and block-sparse attention that keeps a given share of the causal
blocks (sink and diagonal, the rest at random), plus sampling and selection, and the selection of method
"adaptive" by tau and by peaks. Runs alternate, medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.shared import blocks
from sa_compile.provenance import provenance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BLOCK = 128


@dataclass(frozen=True)
class Result:
    """Medians in milliseconds; ``sparse_speedup`` and ``overhead`` are relative to ``dense_ms``."""

    dtype: str
    kv_heads: int
    density: float
    dense_ms: float
    sparse_ms: float
    sample_ms: float
    select_ms: float
    adaptive_ms: float  # block_representatives and select_adaptive
    peaks_ms: float  # block_representatives with 7 landmarks and select_peaks

    @property
    def sparse_speedup(self) -> float:
        return self.dense_ms / self.sparse_ms

    @property
    def overhead(self) -> float:
        return (self.sample_ms + self.select_ms) / self.dense_ms

    def to_dict(self) -> dict[str, float | int | str]:
        return {**asdict(self), "sparse_speedup": self.sparse_speedup, "overhead": self.overhead}


def random_block_mask(n_blocks: int, heads: int, density: float, generator: torch.Generator) -> Tensor:
    """block_mask [1, heads, n_blocks, words]: sink, diagonal, and random causal blocks up to ``density``."""
    row, column = torch.arange(n_blocks)[:, None], torch.arange(n_blocks)
    forced = (column == 0) | (column == row)
    free = (column < row) & ~forced
    wanted = round(density * n_blocks * (n_blocks + 1) / 2) - 2 * n_blocks + 1
    order = torch.rand(heads, n_blocks, n_blocks, generator=generator).masked_fill(~free, 2.0)
    threshold = order.flatten(1).kthvalue(max(wanted, 1), dim=1).values[:, None, None]
    return blocks.pack_bits((order <= threshold) & free | forced & (column <= row))[None]


def measure(
    dtype: str, heads: int, kv_heads: int, head_dim: int, seq_len: int, density: float, repeats: int
) -> Result:
    """Alternating runs of all, on [B, S, H, D] tensors transposed as models do."""
    generator = torch.Generator().manual_seed(0)

    def tensor(n_heads: int) -> Tensor:
        memory = torch.randn(1, seq_len, n_heads, head_dim, generator=generator)
        return memory.to(DTYPES[dtype]).transpose(1, 2)

    query, key, value = tensor(heads), tensor(kv_heads), tensor(kv_heads)
    block_mask = random_block_mask(-(-seq_len // BLOCK), heads, density, generator)
    scores = ops.sample_scores(query, key)
    runs: dict[str, Callable[[], object]] = {
        "dense": lambda: F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=heads != kv_heads
        ),
        "sparse": lambda: ops.block_sparse_attention(query, key, value, block_mask),
        "sample": lambda: ops.sample_scores(query, key),
        "select": lambda: ops.select_blocks(*scores, q_len=seq_len, kv_len=seq_len),
        "adaptive": lambda: ops.select_adaptive(query, key, ops.block_representatives(key)),
        "peaks": lambda: ops.select_peaks(query, key, ops.block_representatives(key, landmarks=7)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for repeat in range(repeats + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if repeat > 0:  # the first round warms up
                    times[name].append(1e3 * (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in times.items()}
    kept = blocks.density(block_mask, seq_len, seq_len, 0, BLOCK, BLOCK).mean().item()
    return Result(dtype, kv_heads, kept, *(median[name] for name in runs))


def print_table(results: list[Result]) -> None:
    """One row a combination of dtype and KV heads."""
    headers = [
        "dtype",
        "KV heads",
        "density",
        "dense ms",
        "sparse ms",
        "dense/sparse",
        "sample ms",
        "select ms",
        "adaptive ms",
        "peaks ms",
    ]
    rows = [
        [
            r.dtype,
            r.kv_heads,
            f"{r.density:.1%}",
            r.dense_ms,
            r.sparse_ms,
            f"{r.sparse_speedup:.1f}x",
            r.sample_ms,
            r.select_ms,
            r.adaptive_ms,
            r.peaks_ms,
            f"{r.overhead:.1%}",
        ]
        for r in results
    ]
    print(tabulate(rows, headers=[*headers, "(sample + select)/dense"], floatfmt=".1f"))


def run(arguments: argparse.Namespace) -> int:
    """``bench cpu-ops``: measure, print the table, write the JSON; returns the exit status."""
    threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    results = [
        measure(
            dtype,
            arguments.heads,
            kv_heads,
            arguments.head_dim,
            arguments.seq_len,
            arguments.density,
            arguments.repeats,
        )
        for dtype in arguments.dtype
        for kv_heads in arguments.kv_heads
    ]
    source = {
        **provenance(),
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    print(
        f"{source['device']}, {threads} threads, torch {torch.__version__}, "
        f"{arguments.seq_len} tokens, {arguments.heads} heads, head_dim {arguments.head_dim}"
    )
    print_table(results)
    if arguments.json:
        sizes = {name: getattr(arguments, name) for name in ("seq_len", "heads", "head_dim", "repeats")}
        record = {**source, **sizes, "results": [result.to_dict() for result in results]}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0
