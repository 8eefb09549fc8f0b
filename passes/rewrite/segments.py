"""Padding, packing and chunks as the two segment tensors that the ops take.

Key j is visible to row i only if ``key_segment[j] >= 0`` and ``key_segment[j] == query_segment[i]``
(``query_segment`` None: all 0). So a key that padding takes away is -1, a packed sequence is its number,
and a chunk is ``(position - left_pad) // size``.
"""

from __future__ import annotations

import operator

import sympy
import torch
from torch import fx

from ..graph.emitter import Emitter
from ..graph.nodes import shape, value
from ..graph.sizes import as_expr, emit_size
from ..mask.predicate import Chunk, MaskPredicate
from ..site import AttentionSite

# Segment numbers are compared, never ordered: dropping the sign bit keeps them apart and leaves -1 for
# padding.
_NON_NEGATIVE = 0x7FFFFFFF


def emit_segments(
    emitter: Emitter, site: AttentionSite, mask: MaskPredicate
) -> tuple[fx.Node | None, fx.Node | None]:
    """``query_segment`` int32 [B|1, Sq] and ``key_segment`` int32 [B|1, Sk] of a predicate; None where not
    needed.

    Raises ``ValueError`` for a predicate with both segments and chunks, which one pair of numbers can not
    say.
    """
    if mask.segments is not None and mask.chunk is not None:
        raise ValueError("a predicate with both segments and chunks has no pair of segment tensors")
    query_segment = key_segment = None
    if mask.segments is not None:
        query_segment = _segment_number(emitter, mask.segments.query_id)
        key_segment = _segment_number(emitter, mask.segments.key_id)
    elif mask.chunk is not None:
        q_len, kv_len = as_expr(shape(site.query)[2]), as_expr(shape(site.key)[2])
        query_segment = _chunk_number(emitter, site, mask.chunk, q_len, mask.q_offset)
        key_segment = _chunk_number(emitter, site, mask.chunk, kv_len, sympy.Integer(0))
    if mask.key_valid is None:
        return query_segment, key_segment
    if key_segment is None:
        valid = emitter.method("to", mask.key_valid, torch.int32)
        return None, emitter.function(operator.sub, valid, 1)
    valid = emitter.method("to", mask.key_valid, torch.bool)
    return query_segment, emitter.method("masked_fill", key_segment, emitter.method("logical_not", valid), -1)


def _segment_number(emitter: Emitter, ids: fx.Node) -> fx.Node:
    return emitter.method("bitwise_and", emitter.method("to", ids, torch.int32), _NON_NEGATIVE)


def _chunk_number(
    emitter: Emitter, site: AttentionSite, chunk: Chunk, length: sympy.Expr, offset: sympy.Expr
) -> fx.Node:
    """``(arange(length) + offset - left_pad[:, None]) // size`` as [B|1, length]."""
    operands = (site.query, site.key, site.value)
    position = emitter.function(
        torch.arange, emit_size(emitter, length, operands), device=value(site.query).device
    )
    if offset != 0:
        position = emitter.function(operator.add, position, emit_size(emitter, offset, operands))
    position = emitter.method("unsqueeze", position, 0)
    if chunk.left_pad is not None:
        position = emitter.function(operator.sub, position, emitter.method("unsqueeze", chunk.left_pad, -1))
    size = emit_size(emitter, chunk.size, operands)
    return _segment_number(emitter, emitter.function(operator.floordiv, position, size))
