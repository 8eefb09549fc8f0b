"""Exact forms against Inductor alone: ``python -m sa_compile bench exact-forms [--json FILE]``.

Attention that is not sampled must not become dearer. One attention behind a filled cache (``rows`` queries,
the last of ``keys``), in the spellings that models use, compiled by our backend and by Inductor. Times are of
the process, not of the wall, and the least of alternating runs: with one thread a busy machine changes them
little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from sa_compile import report
from sa_compile.provenance import provenance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NEVER_SAMPLED = 1 << 30
SECONDS, MOST_RUNS, LEAST_RUNS = 0.3, 40, 4

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Result:
    """Milliseconds of one call; ``form`` is what our backend made of the spelling."""

    spelling: str
    dtype: str
    kv_heads: int
    rows: int
    keys: int
    form: str
    ours_ms: float
    inductor_ms: float

    @property
    def ratio(self) -> float:
        """Above 1: dearer than without us."""
        return self.ours_ms / self.inductor_ms


def _allowed(query: Tensor, key: Tensor) -> Tensor:
    rows, keys = query.shape[2], key.shape[2]
    return torch.arange(keys) <= torch.arange(rows)[:, None] + (keys - rows)


def _repeated(query: Tensor, heads: Tensor) -> Tensor:
    batch, kv_heads, keys, dim = heads.shape
    groups = query.shape[1] // kv_heads
    return heads[:, :, None].expand(batch, kv_heads, groups, keys, dim).reshape(batch, -1, keys, dim)


def _sdpa_repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads = _repeated(query, key), _repeated(query, value)
    return F.scaled_dot_product_attention(query, *heads, attn_mask=_allowed(query, key))


def _sdpa_grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, _allowed(query, key), enable_gqa=True)


def _unmasked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, _repeated(query, key), _repeated(query, value))


def _eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    least = torch.finfo(query.dtype).min
    mask = torch.zeros((), dtype=query.dtype).masked_fill(~_allowed(query, key), least)
    scores = query @ _repeated(query, key).transpose(2, 3) * float(query.shape[3]) ** -0.5 + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ _repeated(query, value)


SPELLINGS: dict[str, Attention] = {
    "sdpa, mask, repeated heads": _sdpa_repeated,
    "sdpa, mask, grouped heads": _sdpa_grouped,
    "sdpa, repeated heads": _unmasked,
    "written out": _eager,
}


@torch.no_grad()
def measure(
    spelling: str, dtype: str, rows: list[int], keys: list[int], heads: tuple[int, int, int]
) -> list[Result]:
    """Compile one spelling twice, for all lengths at once, and time each; ``heads``: Hq, D, Hkv."""
    results: list[Result] = []
    for some in ([row for row in rows if row == 1], [row for row in rows if row > 1]):
        torch._dynamo.reset()
        options: dict[str, Any] = {"min_seq_len": NEVER_SAMPLED}
        compiled: dict[str, Attention] = {
            "ours": torch.compile(SPELLINGS[spelling], backend="sampleattn", options=options),
            "inductor": torch.compile(SPELLINGS[spelling], backend="inductor"),
        }
        form = ""
        for row in some:
            for length in keys:
                operands = _operands(row, length, heads, DTYPES[dtype])
                with report.collect() as graphs:
                    outputs = {name: run(*operands) for name, run in compiled.items()}
                form = next((f"{s.outcome}: {s.form}" for graph in graphs for s in graph.sites), form)
                torch.testing.assert_close(outputs["ours"], outputs["inductor"], atol=2e-2, rtol=2e-2)
                times = _least(compiled, operands)
                results.append(
                    Result(spelling, dtype, heads[2], row, length, form, times["ours"], times["inductor"])
                )
    return results


def _operands(rows: int, keys: int, heads: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value as models hold them: [B, S, H, D], transposed; lengths are dynamic."""
    query_heads, dim, kv_heads = heads
    generator = torch.Generator().manual_seed(rows + keys)
    tensors = []
    for length, count in ((rows, query_heads), (keys, kv_heads), (keys, kv_heads)):
        memory = torch.randn(1, length, count, dim, generator=generator).to(dtype).transpose(1, 2)
        if length > 1:
            torch._dynamo.maybe_mark_dynamic(memory, 2)
        tensors.append(memory)
    return tensors


def _least(compiled: dict[str, Attention], operands: list[Tensor]) -> dict[str, float]:
    """The shortest of alternating runs, in milliseconds of the process."""
    times: dict[str, list[float]] = {name: [] for name in compiled}
    until = time.process_time() + SECONDS
    for number in range(MOST_RUNS):
        if number >= LEAST_RUNS and time.process_time() > until:
            break
        for name, run in compiled.items():
            start = time.process_time()
            run(*operands)
            times[name].append(1e3 * (time.process_time() - start))
    return {name: min(values) for name, values in times.items()}


def print_table(results: list[Result]) -> None:
    """One row a spelling, dtype and number of rows; a column a number of keys: ours / Inductor."""
    lengths = sorted({result.keys for result in results})
    rows: dict[tuple[str, str, int, int, str], dict[int, float]] = {}
    for result in results:
        place = (result.spelling, result.dtype, result.kv_heads, result.rows, result.form)
        rows.setdefault(place, {})[result.keys] = result.ratio
    table = [[*place, *(ratios.get(length) for length in lengths)] for place, ratios in rows.items()]
    headers = ["spelling", "dtype", "KV heads", "rows", "form", *map(str, lengths)]
    print(tabulate(table, headers=headers, floatfmt=".2f"))


def run(arguments: argparse.Namespace) -> int:
    """``bench exact-forms``: measure, print ours / Inductor, write the JSON; returns the exit status."""
    torch.set_num_threads(arguments.threads)
    heads = (arguments.heads, arguments.head_dim)
    results = [
        result
        for kv_heads in arguments.kv_heads
        for spelling in SPELLINGS
        for dtype in arguments.dtype
        for result in measure(spelling, dtype, arguments.rows, arguments.keys, (*heads, kv_heads))
    ]
    source = {
        **provenance(),
        "threads": arguments.threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    print(f"{source['device']}, {arguments.threads} threads, torch {torch.__version__}, ours / Inductor")
    print_table(results)
    if arguments.json:
        sizes = dict(zip(("heads", "head_dim"), heads, strict=True))
        rows = [{**asdict(result), "ratio": result.ratio} for result in results]
        arguments.json.write_text(json.dumps({**source, **sizes, "results": rows}, indent=2) + "\n")
    return 0
