"""Masks and offsets that only a running graph knows: the nodes that read them then.

Before, with a mask that another graph made::

    %sdpa = scaled_dot_product_attention(%q, %repeated_k, %repeated_v, attn_mask=%mask)

    %read = sampleattn.read_mask(%mask, "model.layers.0.self_attn")  # once for all layers that read it
    %late = sampleattn.late_attention(%q, %k, %v, %mask, %read[0], %read[1], %sinks, scale, options, ...)

What was found of a mask is an output of the graph too, for the report (``outputs.py``).

With an offset that a static cache holds there is no mask any more::

    %start = %cumulative_length.to("cpu", torch.int64, copy=True)
    %late = sampleattn.late_attention(%q, %k, %v, None, %start, %key_valid, %sinks, scale, options, ...)

``flex_attention`` computes the blocks that lists name, which are compared with those of the mask::

    %read = sampleattn.read_block_lists(%counts, %blocks, ..., Sq, Sk, offset, 128, 128, "model.layers.0")
    %late = sampleattn.listed_attention(%q, %k, %v, %read[0], %read[1], %read[2], %key_valid, 128, 128, ...)
"""

from __future__ import annotations

import operator

from torch import fx

from sa_compile.late import ops

from ..graph.emitter import Emitter
from ..graph.nodes import shape
from ..mask.predicate import LateMask, MaskPredicate
from ..site import AttentionSite


def emit_late_attention(
    emitter: Emitter, site: AttentionSite, mask: MaskPredicate | LateMask, offset: int | fx.Node, options: str
) -> fx.Node:
    """The op at an offset that the graph finds out: a node of its outputs, attention and stats.

    ``offset``: the part of the predicate's offset that is a size.
    """
    scale = scale_of(site)
    known: tuple[fx.Node | None, ...]  # mask, found, key_valid
    if isinstance(mask, LateMask):
        known = (mask.mask, *_read(emitter, site, mask))
    else:
        start = emitter.function(operator.add, mask.start, offset) if offset != 0 else mask.start
        known = (None, start, mask.key_valid)
    empty_is_nan = site.softmax_empty_rows == "softmax"
    arguments = (site.query, site.key, site.value, *known, site.sinks, scale, options, empty_is_nan)
    return emitter.function(ops.late_attention_op, *arguments)


def emit_read_lists(
    emitter: Emitter,
    site: AttentionSite,
    mask: MaskPredicate,
    lengths: tuple[int | fx.Node, int | fx.Node],
    offset: int | fx.Node,
) -> tuple[fx.Node, ...]:
    """What the graph finds out of a site's block lists: found, listed and full blocks.

    ``lengths``: of query and key; ``offset``: the part of the predicate's offset that is a size.
    """
    lists = site.lists
    assert lists is not None
    tensors = (lists.counts, lists.indices, lists.full_counts, lists.full_indices)
    places = (*lengths, offset, lists.block_q, lists.block_k, site.module_path)
    read = emitter.function(ops.read_block_lists_op, *tensors, mask.key_valid, mask.start, *places)
    return tuple(emitter.item(read, number) for number in range(3))


def emit_listed_attention(
    emitter: Emitter, site: AttentionSite, mask: MaskPredicate, read: tuple[fx.Node, ...], options: str
) -> fx.Node:
    """The op under block lists of which the graph found out ``read``: a node of attention and stats."""
    assert site.lists is not None
    blocks = (site.lists.block_q, site.lists.block_k)
    operands = (site.query, site.key, site.value, *read, mask.key_valid)
    return emitter.function(ops.listed_attention_op, *operands, *blocks, scale_of(site), options)


def scale_of(site: AttentionSite) -> float | fx.Node:
    """What scores are multiplied by."""
    return site.scale if site.scale is not None else float(shape(site.query)[3]) ** -0.5


def found_in_mask(late: fx.Node) -> fx.Node | None:
    """The node of what the graph found of the mask or the lists that this op reads; None where it reads an
    offset alone."""
    if late.target is ops.listed_attention_op:
        return late.args[3]  # type: ignore[return-value]
    return late.args[4] if late.args[3] is not None else None  # type: ignore[return-value]


def _read(emitter: Emitter, site: AttentionSite, late: LateMask) -> tuple[fx.Node, ...]:
    """The two outputs of read_mask, shared by all readers of the mask. Attentions are rewritten in their
    order: what reads the mask by now stands before the next one."""
    read = next((reader for reader in late.mask.users if reader.target is ops.read_mask_op), None)
    if read is not None:
        return tuple(read.users)
    read = emitter.function(ops.read_mask_op, late.mask, site.module_path)
    return emitter.item(read, 0), emitter.item(read, 1)
