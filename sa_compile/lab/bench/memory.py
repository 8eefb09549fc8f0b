"""Does a prompt fit: ``python -m sa_compile bench memory``, which needs no GPU.

The model's prefill runs on fake tensors, which have sizes and no memory, with every attention sampled, and
PyTorch's ``MemTracker`` adds up what is alive. Nothing is fused, so a compiled model stays below it: RMSNorm
alone makes float32 copies of the hidden states. Not counted: what the kernels use inside, and what the
allocator loses between blocks.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sa_compile import prefill
from sa_compile.chunked_mlp import chunk_mlps
from sa_compile.config import SampleAttentionConfig
from sa_compile.lab.bench.shape import Shape, load_shape
from sa_compile.lab.bench.ttft import parse_options
from sa_compile.model_call import cache_of
from sa_compile.provenance import provenance

NAME = "sampleattn_on_fake_tensors"


@dataclass(frozen=True)
class Plan:
    """Bytes of a prefill of all layers at its peak; ``other`` is what is neither weights nor KV cache."""

    length: int
    weights: int
    kv_cache: int
    other: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.other


@torch.no_grad()
def plan(
    shape: Shape, length: int, dtype: torch.dtype, *, batch: int, chunk: int | None, options: dict[str, Any]
) -> Plan:
    """The memory of one prefill with a KV cache and the last token's logits."""
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import AutoModelForCausalLM

    config = SampleAttentionConfig.from_options(options)
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(shape.config, dtype=dtype).eval()
        if chunk:
            chunk_mlps(model, chunk)
        _sample_everything(model, config)
        tracker = MemTracker()
        tracker.track_external(model)
        tokens = torch.zeros(batch, length, dtype=torch.long)
        with tracker:
            out = model(input_ids=tokens, logits_to_keep=1, use_cache=True)
        peak = sum(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())
        weights = sum(_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))
        cache = sum(_bytes(x) for layer in cache_of(out).layers for x in (layer.keys, layer.values))
    return Plan(length, weights, cache, peak - weights - cache)


def _bytes(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())


def _sample_everything(model: nn.Module, config: SampleAttentionConfig) -> None:
    """Let every attention of a model call the ops, as rewritten graphs do."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **arguments: Any
    ) -> tuple[Tensor, None]:
        scale = arguments.get("scaling") or query.shape[-1] ** -0.5
        out, _ = prefill.sampled(prefill.CausalAttention(query, key, value, scale), config)
        return out.transpose(1, 2), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    model.set_attn_implementation(NAME)  # type: ignore[operator]


def table(result: dict[str, Any]) -> str:
    """Markdown: GiB of each part, a row a length, and whether it fits."""
    lines = []
    for found in result["plans"]:
        parts = [found[name] / 2**30 for name in ("weights", "kv_cache", "other", "total")]
        fits = "-" if result["memory_gib"] is None else ("yes" if parts[-1] <= result["memory_gib"] else "NO")
        lines.append([found["length"], *(f"{part:.1f}" for part in parts), fits])
    capacity = "" if result["memory_gib"] is None else f" {result['memory_gib']:g} GiB"
    headers = ["tokens", "weights (GiB)", "KV cache (GiB)", "other at the peak (GiB)", "peak (GiB)"]
    chunk = f"MLPs in chunks of {result['chunked_mlp']} tokens" if result["chunked_mlp"] else "MLPs whole"
    caption = (
        f"{result['model']}, {result['layers']} layers, {result['dtype']}, batch {result['batch']}, {chunk}; "
    )
    caption += "computed on fake tensors, nothing fused: an upper bound for a compiled model"
    rows = tabulate(lines, [*headers, f"fits{capacity}"], tablefmt="github", disable_numparse=True)
    return f"{caption}\n\n{rows}"


def run(arguments: argparse.Namespace) -> int:
    """``bench memory``: plan every length, print the table, write the JSON."""
    shape = load_shape(arguments.model, layers=arguments.layers, narrow=arguments.narrow)
    options = parse_options(arguments.option)
    dtype = getattr(torch, arguments.dtype)
    settings: dict[str, Any] = {"batch": arguments.batch, "chunk": arguments.chunked_mlp, "options": options}
    plans = [plan(shape, length, dtype, **settings) for length in arguments.lengths]
    result = {
        **provenance("cpu", revision=arguments.revision),
        "benchmark": "memory",
        "model": shape.name,
        "layers": shape.layers,
        "dtype": arguments.dtype,
        "batch": arguments.batch,
        "chunked_mlp": arguments.chunked_mlp,
        "options": options,
        "memory_gib": arguments.memory,
        "plans": [{**asdict(one), "total": one.total} for one in plans],
    }
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0
