"""The attention of one layer of a running engine: ours and its parent's, by events, and ours by kernels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile
from vllm.v1.attention.backend import CommonAttentionMetadata

from sa_compile.serving.vllm import backend

REPEAT, CALLS = 3, 4  # times taken, and calls in a row in each, as the layers of a model follow one another


@torch.inference_mode()  # as the engine's cache was made
def measure(
    layers: dict[str, Any],
    attn_groups: list[list[Any]],
    sizes: list[tuple[int, int]],
    kernels_of: list[int],
) -> dict[str, Any]:
    """``sizes``: rows and keys of one request; ``kernels_of``: whole prompts whose kernels are listed.

    Milliseconds of ``parent`` and ``sampleattn``; of ``gathered``, too, where the request is whole: as if its
    keys were in pages alone; and of the host for a call of ``sampleattn``.
    """
    layer, builder = _first(layers, attn_groups)
    rows, kernels = [], {}
    for q_len, kv_len in sizes:
        step = _Step(layer, builder, q_len, kv_len)
        runs = {"parent": step.parent, "sampleattn": step.ours}
        if q_len == kv_len:
            runs["gathered"] = step.gathered
        times = {name: median_ms(run) for name, run in runs.items()}
        rows.append({"rows": q_len, "keys": kv_len, **times, "host": host_ms(step.ours)})
    for length in kernels_of:
        kernels[length] = kernel_table(_Step(layer, builder, length, length).ours)
    return {"milliseconds": rows, "kernels": kernels}


@torch.inference_mode()
def run_once(layers: dict[str, Any], attn_groups: list[list[Any]], sizes: list[tuple[int, int]]) -> None:
    """Our attention of one layer, once for each size."""
    layer, builder = _first(layers, attn_groups)
    for q_len, kv_len in sizes:
        _Step(layer, builder, q_len, kv_len).ours()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _first(layers: dict[str, Any], attn_groups: list[list[Any]]) -> tuple[Any, Any]:
    """A layer with attention, and the builder of its metadata."""
    layer = next(one for one in layers.values() if getattr(one, "impl", None) is not None)
    builder = next(b for groups in attn_groups for group in groups for b in group.metadata_builders)
    return layer, builder


class _Step:
    """One request in one layer, as the model would hand it over; the cache holds random numbers."""

    def __init__(self, layer: Any, builder: Any, q_len: int, kv_len: int) -> None:
        impl, cache = layer.impl, layer.kv_cache
        cache = cache[0] if isinstance(cache, list) else cache
        page = cache.shape[2]
        n_pages = -(-kv_len // page)
        cache[1 : n_pages + 1].normal_()
        device = cache.device
        heads = (impl.num_heads, impl.num_kv_heads, impl.num_kv_heads)
        qkv = torch.randn((q_len, sum(heads), impl.head_size), device=device, dtype=layer.dtype)
        query, key, value = qkv.split(heads, dim=1)
        starts = torch.tensor([0, q_len], dtype=torch.int32)
        lengths = torch.tensor([kv_len], dtype=torch.int32)
        common = CommonAttentionMetadata(
            query_start_loc=starts.to(device),
            query_start_loc_cpu=starts,
            seq_lens=lengths.to(device),
            seq_lens_cpu_upper_bound=lengths,
            num_reqs=1,
            num_actual_tokens=q_len,
            max_query_len=q_len,
            max_seq_len=kv_len,
            block_table_tensor=torch.arange(1, n_pages + 1, device=device, dtype=torch.int32)[None],
            slot_mapping=torch.arange(q_len, device=device),
        )
        metadata = builder.build(0, common)
        self.plan = getattr(metadata, "sampleattn_plan", None)  # None: too few rows to be sampled
        output = torch.empty((q_len, impl.num_heads, impl.head_size), device=device, dtype=layer.dtype)
        self.impl = impl
        self.call = (layer, query, key, value, cache, metadata, output)

    def ours(self) -> Any:
        out = self.impl.forward(*self.call)
        if self.plan is not None and self.plan.failed:
            raise RuntimeError("our attention failed: the log says why")
        return out

    def parent(self) -> Any:
        return super(backend.SampledImpl, self.impl).forward(*self.call)

    def gathered(self) -> Any:
        with mock.patch.object(self.impl, "kv_sharing_target_layer_name", "as if another's"):
            return self.ours()


def median_ms(run: Callable[[], Any]) -> float:
    """Median milliseconds of the device, after a warm-up."""
    times = []
    for _ in range(REPEAT + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(CALLS):
            run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / CALLS)
    return statistics.median(times[1:])


def host_ms(run: Callable[[], Any]) -> float:
    """Milliseconds until a call comes back, of calls that do not wait for the device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e3 * seconds / CALLS


def kernel_table(run: Callable[[], Any]) -> list[tuple[str, int, float]]:
    """Kernels of one call: name, launches and milliseconds, the longest first."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    rows = [
        (event.key[:120], event.count, event.self_device_time_total / 1000) for event in seen.key_averages()
    ]
    return sorted((row for row in rows if row[2] > 0), key=lambda row: -row[2])
