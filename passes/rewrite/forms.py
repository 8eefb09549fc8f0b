"""Replace an attention by what was decided for it.

Sampled, before and after, with the method "adaptive"::

    %sdpa = scaled_dot_product_attention(%q, %repeated_k, %repeated_v, attn_mask=%mask)

    %terms = sampleattn.block_representatives(%k, %key_segment, block_k, landmarks)
    %looked_for = sampleattn.select_peaks(%q, %k, %terms[0], %terms[1], %terms[2], %key_segment, ...)
    %kept = sampleattn.select_budget_rest(%q, %k, %v, %looked_for, %key_segment, scale, q_offset, ...)
    %attention = sampleattn.block_rest_attention(%q, %k, %v, %kept[0], %kept[1], %kept[2], %kept[3], ...)

Which ops choose the blocks, and which attention reads them, is the method's (``sa_compile.methods``).
What computed the mask and the repeated heads has no reader any more; ``dead_code.py`` removes it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx

from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels import ops
from sa_compile.late.attention import options_text
from sa_compile.methods import Attention, Forced, kept_mass, method_of

from ..decide import Decision
from ..graph.emitter import Emitter
from ..graph.example_values import KnownExamples
from ..graph.nodes import shape, value
from ..graph.operations import calls
from ..graph.sizes import as_expr, emit_size, fixed, same_shape
from ..mask.predicate import LateMask, MaskPredicate
from ..match.repeats import permutation
from ..site import AttentionSite
from .late import (
    emit_late_attention,
    emit_listed_attention,
    emit_read_lists,
    found_in_mask,
    scale_of,
)
from .segments import emit_segments
from .stats import emit_stats


class SharedNodes:
    """Nodes that every layer needs alike (segments, mask_blocks), emitted once a graph, at their first
    reader."""

    def __init__(self) -> None:
        self._nodes: dict[Any, Any] = {}
        self.examples = KnownExamples()

    def get(self, key: Any, emit: Callable[[], Any]) -> Any:
        """What was emitted for ``key`` before, or what ``emit`` emits now."""
        if key not in self._nodes:
            self._nodes[key] = emit()
        return self._nodes[key]


@dataclass(frozen=True)
class Written:
    """The node that is read now, and those of what the site measures and finds out."""

    out: fx.Node
    stats: fx.Node | None  # if they are collected
    found: fx.Node | None  # of a mask that is read when the graph runs


def write(
    site: AttentionSite,
    mask: MaskPredicate | LateMask,
    decision: Decision,
    config: SampleAttentionConfig,
    shared: SharedNodes,
    collect_stats: bool = False,
) -> Written:
    """Emit what ``decision.form`` says in front of ``site.output`` and let its readers read that instead.

    The old nodes stay, without readers; the graph is neither linted nor recompiled. Raises
    ``SizeNotAvailable`` if a size of the predicate is not at hand, before anything was changed for good.
    """
    writer = _Writer(site, mask, config, shared, collect_stats)
    form = {
        "sampled": writer.sampled,
        "late": writer.late,
        "block_sparse": writer.block_sparse,
        "sdpa_causal": writer.sdpa_causal,
        "sdpa_full": writer.sdpa_full,
    }[decision.form]
    out = writer.like_output(form())
    site.output.replace_all_uses_with(out)
    return Written(out, writer.stats, writer.found)


class _Writer:
    """Emits the forms for one site."""

    def __init__(
        self,
        site: AttentionSite,
        mask: MaskPredicate | LateMask,
        config: SampleAttentionConfig,
        shared: SharedNodes,
        collect_stats: bool,
    ) -> None:
        self.site = site
        self.late_mask = mask
        # Only ``late`` is called without a predicate, and reads no other part of this one.
        self.mask = mask if isinstance(mask, MaskPredicate) else MaskPredicate(causal=True)
        self.config = config
        self.shared = shared
        self.collect_stats = collect_stats
        self.stats: fx.Node | None = None
        self.found: fx.Node | None = None
        self.emitter = Emitter(site.output, shared.examples.get)
        self.operands = (site.query, site.key, site.value)
        self.scale = scale_of(site)

    def sampled(self) -> fx.Node:
        """The ops that the method chooses blocks by, then its attention over them."""
        config, method, seen = self.config, method_of(self.config), self._seen_by_methods()
        kept = method.keep(self, config, seen, Forced.of(config), self.site.value)
        if self.collect_stats:
            allowed = self._shared_mask_blocks()
            mass = kept_mass(self, method, config, seen, kept.block_mask)
            self.stats = emit_stats(self.emitter, kept.block_mask, allowed, mass)
        return self._output_of(method.attend(self, config, seen, self.site.value, kept))

    def late(self) -> fx.Node:
        """The same at an offset, under a mask or in blocks that are read when the graph runs."""
        options = options_text(replace(self.config, stats=self.collect_stats))
        offset = self.size(self.mask.q_offset)
        if self.site.lists is not None:
            late = emit_listed_attention(
                self.emitter, self.site, self.mask, self._read_lists(offset), options
            )
        else:
            late = emit_late_attention(self.emitter, self.site, self.late_mask, offset, options)
        self.found = found_in_mask(late)
        if self.collect_stats:
            self.stats = self.emitter.item(late, 1)
        return self.emitter.item(late, 0)

    def call(self, op: Any, *arguments: Any) -> fx.Node:
        """What a method calls, as a node."""
        return self.emitter.function(op, *arguments)

    def item(self, results: fx.Node, number: int) -> fx.Node:
        """One result of what a method called."""
        return self.emitter.item(results, number)

    def size(self, size: sympy.Expr) -> int | fx.Node:
        """A size as a number or a node; one node for all layers."""
        return self.shared.get(("size", size), lambda: emit_size(self.emitter, size, self.operands))

    def _seen_by_methods(self) -> Attention:
        site, config = self.site, self.config
        return Attention(
            site.query,
            site.key,
            self._segments()[1],
            self.scale,
            self.size(self.mask.q_offset),
            *self._lengths(),
            config.block_q,
            config.block_k,
            sinks=self._sinks(),
        )

    def block_sparse(self) -> fx.Node:
        """mask_blocks, once for all layers with this mask, and block_sparse_attention: exact."""
        return self._attention(self._shared_mask_blocks())

    def sdpa_causal(self) -> fx.Node:
        """SDPA with ``is_causal``; keys behind the last row are cut off, for ``is_causal`` aligns
        top-left."""
        key, value_ = self.site.key, self.site.value
        q_len, kv_len = shape(self.site.query)[2], shape(key)[2]
        if not same_shape((q_len,), (kv_len,)):
            end = self.size(as_expr(q_len))
            key, value_ = (
                self.emitter.function(
                    operator.getitem, x, (slice(None), slice(None), slice(None, end), slice(None))
                )
                for x in (key, value_)
            )
        return self._sdpa(key, value_, is_causal=True)

    def sdpa_full(self) -> fx.Node:
        """SDPA without a mask."""
        return self._sdpa(self.site.key, self.site.value, is_causal=False)

    def like_output(self, out: fx.Node) -> fx.Node:
        """``out`` [B, Hq, Sq, Dv] in the dtype, the order of dimensions, the shape and the layout of
        ``site.output``."""
        wanted = value(self.site.output)
        out = self.emitter.to_dtype(out, wanted.dtype)
        out = self.emitter.permute(out, self.site.output_order)
        if not same_shape(shape(out), wanted.shape):
            sizes = [self.size(as_expr(size)) for size in wanted.shape]
            return self.emitter.method("reshape", out, *sizes)
        if (
            wanted.is_contiguous()
            and not value(out).is_contiguous()
            and not _readers_take_any_layout(self.site.output)
        ):
            return self.emitter.method("contiguous", out)
        return out

    def _attention(self, block_mask: fx.Node) -> fx.Node:
        site, mask, config = self.site, self.mask, self.config
        query_segment, key_segment = self._segments()
        attention = self.emitter.function(
            ops.block_sparse_attention_op,
            site.query,
            site.key,
            site.value,
            block_mask,
            query_segment,
            key_segment,
            self._sinks(),
            self.scale,
            mask.causal,
            self.size(mask.q_offset),
            self.size(mask.window) if mask.window is not None else 0,
            config.block_q,
            config.block_k,
        )
        return self._output_of(attention)

    def _output_of(self, attention: fx.Node) -> fx.Node:
        """The output of an attention op, with what rows that see no key have in the original."""
        out, mask = self.emitter.item(attention, 0), self.mask
        if not mask.may_have_empty_rows or mask.masked_value != "finfo.min":
            return out
        return self._mean_in_empty_rows(out, self.emitter.item(attention, 1))

    def _sinks(self) -> fx.Node | None:
        """The site's sinks as the ops take them."""
        return None if self.site.sinks is None else self.emitter.to_dtype(self.site.sinks, torch.float32)

    def _mean_in_empty_rows(self, out: fx.Node, lse: fx.Node) -> fx.Node:
        """Under finfo.min a row that may see no key weighs all keys alike, those behind it included; but any
        sink that is not -inf outweighs them."""
        site = self.site
        mean = self.emitter.method("mean", site.value, 2, keepdim=True)  # [B, Hkv, 1, Dv]
        group = fixed(shape(site.query)[1]) // fixed(shape(site.key)[1])
        if group > 1:
            mean = self.emitter.method("repeat_interleave", mean, group, 1)
        weigh = self.emitter.function(operator.eq, lse, float("-inf"))
        sinks = self._sinks()
        if sinks is not None:
            no_sink = self.emitter.function(operator.eq, sinks, float("-inf"))
            weigh = self.emitter.function(
                torch.logical_and, weigh, self.emitter.method("reshape", no_sink, -1, 1)
            )
        empty = self.emitter.method("unsqueeze", weigh, -1)
        return self.emitter.function(torch.where, empty, mean, out)

    def _read_lists(self, offset: int | fx.Node) -> tuple[fx.Node, ...]:
        q_len, kv_len = map(self.size, self._lengths())
        return self.shared.get(
            ("lists", self.site.lists, *self._mask_key()),
            lambda: emit_read_lists(self.emitter, self.site, self.mask, (q_len, kv_len), offset),
        )

    def _shared_mask_blocks(self) -> fx.Node:
        blocks = (self.config.block_q, self.config.block_k)
        return self.shared.get(("mask_blocks", *blocks, *self._mask_key()), self._mask_blocks)

    def _mask_blocks(self) -> fx.Node:
        query_segment, key_segment = self._segments()
        return self.emitter.function(
            ops.mask_blocks_op,
            self.site.query,
            self.site.key,
            query_segment,
            key_segment,
            self.mask.causal,
            self.size(self.mask.q_offset),
            self.size(self.mask.window) if self.mask.window is not None else 0,
            self.config.block_q,
            self.config.block_k,
        )

    def _segments(self) -> tuple[fx.Node | None, fx.Node | None]:
        return self.shared.get(
            ("segments", *self._mask_key()), lambda: emit_segments(self.emitter, self.site, self.mask)
        )

    def _mask_key(self) -> tuple[Any, ...]:
        return self.mask, *self._lengths(), value(self.site.query).device

    def _lengths(self) -> tuple[sympy.Expr, sympy.Expr]:
        return as_expr(shape(self.site.query)[2]), as_expr(shape(self.site.key)[2])

    def _sdpa(self, key: fx.Node, value_: fx.Node, is_causal: bool) -> fx.Node:
        grouped = fixed(shape(self.site.query)[1]) != fixed(shape(key)[1])
        return self.emitter.function(
            torch._C._nn.scaled_dot_product_attention,
            self.site.query,
            key,
            value_,
            attn_mask=None,
            dropout_p=0.0,
            is_causal=is_causal,
            scale=self.site.scale,
            enable_gqa=grouped,
        )


def _readers_take_any_layout(node: fx.Node) -> bool:
    """No reader needs the strides that were captured: all swap heads and rows, copy, or reshape."""
    return all(
        permutation(reader) == (0, 2, 1, 3)
        or calls(reader, "reshape", "contiguous")
        or (
            calls(reader, "view")
            and same_shape(shape(reader), shape(node))
            and _readers_take_any_layout(reader)
        )
        for reader in node.users
    )
