"""What attention costs on this machine, measured op by op, and the prediction made of it.

The time of one attention is ``selection + floor + density * (block - floor)``: ``selection`` is the time of
the sampling and selection ops and, for a method that counts left-out blocks for something, what that adds
where no block is kept; ``block`` that of the block-sparse op with every causal block kept; ``floor`` what the
op takes at any density, from its time with a quarter of the blocks. They are measured per length, block sizes
and kind of attention; dense SDPA beside them, as the time that is to be beaten.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig
from sa_compile.fingerprint import AttentionKind
from sa_compile.kernels import ops
from sa_compile.kernels.shared.blocks import pack_bits, unpack_bits
from sa_compile.lab.bench.ops import timing
from sa_compile.lab.tune.space import Candidate, blocks_text
from sa_compile.methods import method_of

_REPEATS = 5
_PART = 0.25  # of the causal blocks, with which the block-sparse op is timed a second time


@dataclass
class LengthCosts:
    """Milliseconds of a whole forward pass's attentions at one length, batch 1: sums over its attentions."""

    length: int
    dense_ms: float = 0.0
    block_ms: dict[str, float] = field(default_factory=dict)  # by block sizes, every causal block kept
    selection_ms: dict[str, float] = field(default_factory=dict)  # by Candidate.timed_as
    floor_ms: dict[str, float] = field(default_factory=dict)  # by block sizes, of that what no density saves
    seconds: float = 0.0  # that measuring took

    def predict(self, candidate: Candidate, density: float) -> float:
        """Milliseconds of a forward pass's attentions that keep ``density`` of the causal blocks."""
        blocks = blocks_text(candidate.blocks)
        attention = attention_ms(density, self.block_ms[blocks], self.floor_ms[blocks])
        return self.selection_ms[candidate.timed_as] + attention


def attention_ms(density: float, block_ms: float, floor_ms: float) -> float:
    """Milliseconds of the block-sparse op with ``density`` of the causal blocks; both as in LengthCosts."""
    return floor_ms + density * (block_ms - floor_ms)


@torch.no_grad()
def measure_costs(
    length: int, kinds: Iterable[AttentionKind], tried: Iterable[Candidate], device: torch.device
) -> LengthCosts:
    """Time dense attention, the block-sparse op and every distinct selection on random tensors."""
    begin = time.monotonic()
    costs = LengthCosts(length)
    distinct = {candidate.timed_as: candidate for candidate in tried}
    sizes = {candidate.blocks for candidate in distinct.values()}
    for kind in kinds:
        query, key, value = random_tensors(kind, length, device)

        def timed(run: Callable[[], Any], count: int = kind.count) -> float:
            return count * milliseconds(run, device)

        costs.dense_ms += timed(partial(_dense, query, key, value))
        for block_q, block_k in sorted(sizes):
            blocks: dict[str, Any] = {"block_q": block_q, "block_k": block_k}
            every = ops.mask_blocks(query, key, **blocks).expand(1, kind.q_heads, -1, -1).contiguous()
            some, density = _part_of(every, -(-length // block_k))
            all_ms, some_ms = (
                timed(partial(ops.block_sparse_attention, query, key, value, mask, **blocks))
                for mask in (every, some)
            )
            name = blocks_text((block_q, block_k))
            floor = (
                min(max((some_ms - density * all_ms) / (1 - density), 0.0), all_ms) if density < 1 else 0.0
            )
            costs.block_ms[name] = costs.block_ms.get(name, 0.0) + all_ms
            costs.floor_ms[name] = costs.floor_ms.get(name, 0.0) + floor
        for name, candidate in distinct.items():
            attention = prefill.CausalAttention(query, key, value, query.shape[-1] ** -0.5)
            spent = timed(partial(prefill.keep, attention, candidate.config))
            if method_of(candidate.config).counts_left_out(candidate.config):
                something, nothing = (timed(run) for run in _over_no_block(attention, candidate.config))
                spent += max(something - nothing, 0.0)
            costs.selection_ms[name] = costs.selection_ms.get(name, 0.0) + spent
    costs.seconds = time.monotonic() - begin
    return costs


def _part_of(every: Tensor, n_key_blocks: int) -> tuple[Tensor, float]:
    """Random blocks of an index, about a quarter, and which share of the blocks they are."""
    blocks = unpack_bits(every, n_key_blocks)
    generator = torch.Generator(every.device).manual_seed(0)
    drawn = torch.rand(blocks.shape, generator=generator, device=every.device) < _PART
    return pack_bits(blocks & drawn), int((blocks & drawn).sum()) / int(blocks.sum())


def _over_no_block(
    attention: prefill.CausalAttention, config: SampleAttentionConfig
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Attention that keeps no block, with what the method counts of those that are left out and without."""
    kept = prefill.keep(attention, config)
    none = torch.zeros_like(kept.block_mask)
    tensors, blocks = (attention.query, attention.key, attention.value), (config.block_q, config.block_k)
    return (
        lambda: prefill.over_blocks(attention, config, replace(kept, block_mask=none))[0],
        lambda: ops.block_sparse_attention(*tensors, none, block_q=blocks[0], block_k=blocks[1])[0],
    )


def milliseconds(run: Callable[[], Any], device: torch.device, repeats: int = _REPEATS) -> float:
    """Median time of ``run`` after one call that is not timed."""
    if device.type == "cuda":
        return statistics.median(timing.milliseconds(run, repeats))
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)


def random_tensors(kind: AttentionKind, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value in the memory layout of models, [B, S, H, D] seen as [B, H, S, D]."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = (
        (kind.q_heads, kind.head_dim),
        (kind.kv_heads, kind.head_dim),
        (kind.kv_heads, kind.value_head_dim),
    )
    query, key, value = (
        torch.randn(1, length, heads, dim, generator=generator, device=device)
        .to(getattr(torch, kind.dtype))
        .transpose(1, 2)
        for heads, dim in sizes
    )
    return query, key, value
