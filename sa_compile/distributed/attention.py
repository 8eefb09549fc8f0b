"""The attention of a rank's rows of a prompt to all of its keys, which the ranks gather a layer at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig
from sa_compile.distributed.layout import Layout, in_order
from sa_compile.distributed.ranks import Ranks
from sa_compile.hf.state import site_of
from sa_compile.kernels import ops
from sa_compile.kernels.shared.shapes import ceil_div
from sa_compile.methods import ON_TENSORS, OnTensors
from sa_compile.passes.conditions.length_range import settings_for
from sa_compile.passes.site_record import SiteRecord
from sa_compile.prefill import CausalAttention


@dataclass
class Context:
    """What a model's attention needs when it runs: its ranks, and its modules by layer."""

    ranks: Ranks
    config: SampleAttentionConfig
    modules: dict[int, nn.Module]
    seen: set[int] = field(default_factory=set)  # layers whose attention ran since the model was called

    def check_that_all_ran(self) -> None:
        """Raises ValueError if the attention of some layers was not of all ranks' rows."""
        missing = sorted(self.modules.keys() - self.seen)
        if missing:
            raise ValueError(
                f"context_parallel: layers {missing} computed no attention through transformers' attention "
                "interface: they saw a rank's own rows alone, so their results are not the model's"
            )

    def layout(self, length: int) -> Layout:
        """Which rank holds which rows of a prompt."""
        return Layout(length, self.ranks.size, self.config.block_q)


_contexts: WeakValueDictionary[str, Context] = WeakValueDictionary()  # the wrapped models keep them
_numbers = itertools.count()


def register(context: Context) -> str:
    """The name under which the op finds a context, while its model lives."""
    name = f"context_parallel_{next(_numbers)}"
    _contexts[name] = context
    return name


def context_of(name: str) -> Context:
    """The context that was registered under a name."""
    return _contexts[name]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shard_mask: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int,
    context: str,
    layer: int,
) -> Tensor:
    """The op ``context_attention`` (see ``ops``): out [B, Hq, Sq, Dv] in memory [B, Sq, Hq, Dv]."""
    found = context_of(context)
    found.seen.add(layer)
    ranks, layout = found.ranks, found.layout(shard_mask.shape[-1])
    rank, length = ranks.rank, layout.length
    rows = layout.rows(rank)
    valid = None if shard_mask.shape[0] == 0 else shard_mask[:, 0, 0] == 0
    parts_of_keys, parts_of_values = ranks.gather(key), ranks.gather(value)

    def in_prompt(parts: Tensor) -> Tensor:
        return in_order(parts, 2, layout.run)[:, :, :length]

    @cache
    def values() -> Tensor:  # they arrive while blocks are selected
        return in_prompt(parts_of_values())

    site = site_of(found.modules[layer])
    chosen = settings_for(found.config, sympy.Integer(length), bool)
    sampling = not (window or chosen.exact)
    not_yet = value[:, :, :0]
    run = _Gathering(ranks, layout, key, valid, not_yet, values) if sampling else ON_TENSORS
    if isinstance(run, _Gathering):
        run.begin(chosen.config)
    keys = in_prompt(parts_of_keys())
    where = (scale, rank * layout.run, window, valid, sinks, layout.ranks)
    a = CausalAttention(query[:, :, :rows], keys, not_yet, *where)
    reason = f"rank {rank} of {ranks.size}; " + (f"window {window}" if window else chosen.reason)
    record = _record(a, length, "sampled" if sampling else "exact", reason, chosen.config)
    site.note(record)
    if sampling:
        kept = prefill.keep(a, chosen.config, run)
        out, stats = prefill.over_blocks(replace(a, value=values()), chosen.config, kept)
        if stats is not None and rows:
            site.add_stats(record, stats)
    else:
        out = prefill.exact(replace(a, value=values()), chosen.config)
    missing = query.shape[2] - rows
    return F.pad(out.transpose(1, 2), (0, 0, 0, 0, 0, missing)).contiguous().transpose(1, 2)


class _Gathering(OnTensors):
    """Calls ops at once, but for the representatives of all keys: each rank makes those of its own.

    That is done by :meth:`begin`, so that it happens, and the results travel, while keys do. An op that takes
    ``not_yet`` for the values gets ``values()``, which waits for them.
    """

    def __init__(
        self,
        ranks: Ranks,
        layout: Layout,
        key: Tensor,
        valid: Tensor | None,
        not_yet: Tensor,
        values: Callable[[], Tensor],
    ) -> None:
        self.ranks, self.layout, self.key, self.valid = ranks, layout, key, valid
        self.not_yet, self.values = not_yet, values

    def begin(self, options: Any) -> None:
        """Make the representatives of this rank's keys, and send them."""
        self.blocks_of_a_run = self.layout.run // options.block_k
        segment = self._own_segment()
        found = ops.block_representatives(
            self.key, key_segment=segment, block_k=options.block_k, landmarks=options.landmarks
        )
        self.waiting = [self.ranks.gather(part) for part in found]

    def call(self, op: Any, *arguments: Any) -> Any:
        if op is not ops.block_representatives_op:
            given = (self.values() if x is self.not_yet else x for x in arguments)
            return super().call(op, *given)
        block_k = arguments[2]
        n = ceil_div(self.layout.length, block_k)
        return tuple(
            in_order(wait(), 3, self.blocks_of_a_run)[:, :, :, :n].contiguous() for wait in self.waiting
        )

    def _own_segment(self) -> Tensor | None:
        """Which of this rank's keys may be seen, int32 [B|1, rows]; None: all of them."""
        layout, rank = self.layout, self.ranks.rank
        if self.valid is None and layout.rows(rank) == layout.rows_of_a_rank:
            return None
        valid = self.valid
        if valid is None:
            valid = torch.ones((1, layout.length), dtype=torch.bool, device=self.key.device)
        return layout.of_rank(valid, 1, rank).to(torch.int32) - 1


def _record(a: CausalAttention, length: int, outcome: str, reason: str, options: Any) -> SiteRecord:
    parts = ["causal", f"window({a.window})" if a.window else "", "" if a.key_valid is None else "key_valid"]
    query, dims = a.query, (a.query.shape[-1], a.value.shape[-1])
    return SiteRecord(
        "",
        "context_parallel",
        batch=query.shape[0],
        q_heads=query.shape[1],
        kv_heads=a.key.shape[1],
        head_dim=dims[0],
        q_len=query.shape[2],
        kv_len=length,
        dtype=str(query.dtype).removeprefix("torch."),
        mask=" & ".join(filter(None, parts)),
        outcome=outcome,
        form="sampled" if outcome == "sampled" else "block_sparse",
        reason=reason,
        kernel=ops.attention_kernel(query.device, query.dtype, *dims, options.block_q, options.block_k),
    )
