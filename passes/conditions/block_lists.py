"""Whether an attention whose blocks are lists, known only when the graph runs, may be sampled then."""

from __future__ import annotations

from collections.abc import Callable

import sympy

from ..mask.predicate import MaskPredicate


def why_as_listed(
    mask: MaskPredicate, q_len: sympy.Expr, kv_len: sympy.Expr, holds: Callable[[sympy.Basic], bool]
) -> str | None:
    """Why ``flex_attention`` under this mask stays as it was, whatever its lists are; None if it need not.

    Blocks that a window or segments leave out are not in the lists, so there is nothing to gain.
    """
    if holds(sympy.Eq(q_len, 1)):
        return "decode: one query row"
    if mask.is_full:
        return "bidirectional attention, nothing masked"
    if not mask.causal:
        return "bidirectional attention with a mask"
    if not mask.is_plain_causal:
        return f"not plain causal: {mask}; flex_attention leaves out what that masks"
    if not holds(sympy.Ge(mask.q_offset, 0)):
        return f"causal offset {mask.q_offset} is negative: the first rows see no key"
    if mask.start is None and not holds(sympy.Le(mask.q_offset + q_len, kv_len)):
        return "queries reach past the keys"
    return None
