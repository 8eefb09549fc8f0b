"""CPU ops against dense attention: ``python -m sa_compile.bench.cpu_ops [--json FILE]``.

One prefill of one layer: dense causal SDPA, and block-sparse attention that keeps a given share of the causal
blocks (sink and diagonal, the rest at random), plus sampling and selection. Runs alternate, medians are
compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from sa_compile.kernels import blocks, ops

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
    """Alternating runs of the four, on [B, S, H, D] tensors transposed as models do."""
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
        "select": lambda: ops.select_blocks(*scores, q_len=seq_len, k_len=seq_len),
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
    return Result(
        dtype, kv_heads, kept, median["dense"], median["sparse"], median["sample"], median["select"]
    )


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
            f"{r.overhead:.1%}",
        ]
        for r in results
    ]
    print(tabulate(rows, headers=[*headers, "(sample + select)/dense"], floatfmt=".1f"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sa_compile.bench.cpu_ops", description="CPU ops against dense attention."
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results as JSON")
    parser.add_argument("--seq-len", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, nargs="+", default=[8, 2])
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--density", type=float, default=0.125, help="share of the causal blocks that is kept"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    results = [
        measure(dtype, args.heads, kv_heads, args.head_dim, args.seq_len, args.density, args.repeats)
        for dtype in args.dtype
        for kv_heads in args.kv_heads
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    device = {"cpu": cpu_name(), "threads": args.threads, "capability": capability}
    print(
        f"{device['cpu']}, {args.threads} threads, torch {torch.__version__}, {args.seq_len} tokens, "
        f"{args.heads} heads, head_dim {args.head_dim}"
    )
    print_table(results)
    if args.json:
        record = {
            "command": " ".join([parser.prog, *(sys.argv[1:] if argv is None else argv)]),
            "device": device,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "seq_len": args.seq_len,
            "heads": args.heads,
            "head_dim": args.head_dim,
            "results": [result.to_dict() for result in results],
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
