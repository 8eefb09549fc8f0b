"""Masks and offsets that only a running graph knows: which can be read then, and the nodes that do it.

Before, with a mask that another graph made::

    %sdpa = scaled_dot_product_attention(%q, %repeated_k, %repeated_v, attn_mask=%mask)

    %read = sampleattn.read_mask(%mask, "model.layers.0.self_attn")  # once for all layers that read it
    %late = sampleattn.late_attention(%q, %k, %v, %mask, %read[0], %read[1], scale, options)

What was found of a mask is an output of the graph too, for the report (``outputs.py``).

With an offset that a static cache holds there is no mask any more::

    %start = %cumulative_length.to("cpu", torch.int64, copy=True)
    %late = sampleattn.late_attention(%q, %k, %v, None, %start, %key_valid, scale, options)
"""

from __future__ import annotations

import operator
from dataclasses import replace

import torch
from torch import fx

from sa_compile.late import ops

from .fx_utils import Emitter, same_size, shape, value
from .graph.operations import is_foreign
from .mask.predicate import LateMask, MaskPredicate, NotProven
from .mask.scan import GraphScan
from .site import AttentionSite


def readable(site: AttentionSite, not_proven: NotProven, scan: GraphScan) -> LateMask | NotProven:
    """The mask as one that is read when the graph runs, or why it stays unknown, with the way out."""
    mask, stopped = site.mask, not_proven.node
    if mask is None or not_proven.refuted:
        return not_proven
    if stopped is not None and is_foreign(stopped):
        return not_proven  # what is not torch's stays as it was, with all that rests on it
    if site.spelling != "sdpa" or value(mask).dtype != torch.bool:
        return replace(not_proven, reason=f"{not_proven.reason}; SDPA's bool masks are read when they run")
    sizes = (1, 1, *shape(mask))[-4:]
    wanted = (shape(site.query)[0], 1, shape(site.query)[2], shape(site.key)[2])
    fits = all(same_size(a, b) for a, b in zip(sizes[1:], wanted[1:], strict=True))
    if not fits or not (same_size(sizes[0], 1) or same_size(sizes[0], wanted[0])):
        return not_proven
    if scan.mutations.between(mask, site.output):
        return not_proven  # layers would read different masks
    return LateMask(mask, not_proven)


def emit_late_attention(
    emitter: Emitter, site: AttentionSite, mask: MaskPredicate | LateMask, offset: int | fx.Node, options: str
) -> fx.Node:
    """The op at an offset that the graph finds out: a node of its outputs, attention and stats.

    ``offset``: the part of the predicate's offset that is a size.
    """
    scale = site.scale if site.scale is not None else float(shape(site.query)[3]) ** -0.5
    known: tuple[fx.Node | None, ...]  # mask, found, key_valid
    if isinstance(mask, LateMask):
        known = (mask.mask, *_read(emitter, site, mask))
    else:
        start = emitter.function(operator.add, mask.start, offset) if offset != 0 else mask.start
        known = (None, start, mask.key_valid)
    arguments = (site.query, site.key, site.value, *known, scale, options)
    return emitter.function(ops.late_attention_op, *arguments)


def found_in_mask(late: fx.Node) -> fx.Node | None:
    """The node of what the graph found of the mask that this op reads; None without a mask."""
    return late.args[4] if late.args[3] is not None else None  # type: ignore[return-value]


def _read(emitter: Emitter, site: AttentionSite, late: LateMask) -> tuple[fx.Node, ...]:
    """The two outputs of read_mask, shared by all readers of the mask. Attentions are rewritten in their
    order: what reads the mask by now stands before the next one."""
    read = next((reader for reader in late.mask.users if reader.target is ops.read_mask_op), None)
    if read is not None:
        return tuple(read.users)
    read = emitter.function(ops.read_mask_op, late.mask, site.module_path)
    return emitter.item(read, 0), emitter.item(read, 1)
