"""MaskPredicate: the normal form that a proven mask has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import sympy
from torch import fx

# Sizes and offsets are expressions over the shape symbols of the graph (constants included).
Size: TypeAlias = sympy.Expr


@dataclass(frozen=True)
class Chunk:
    """Attention only inside chunks: ``(p - left_pad[b]) // size == (k - left_pad[b]) // size``."""

    size: Size
    left_pad: fx.Node | None = None  # [B] int, or None for 0


@dataclass(frozen=True)
class Segments:
    """Attention only inside a packed sequence: ``query_id[b, q] == key_id[b, k]``."""

    query_id: fx.Node  # [B|1, Sq] int
    key_id: fx.Node  # [B|1, Sk] int


@dataclass(frozen=True)
class MaskPredicate:
    """allowed(b, q, k) as a conjunction; a part that is None allows everything.

    With the query's position ``p = q + q_offset + start``::

        causal        k <= p
        window        k > p - window                    (only together with causal)
        chunk         same chunk, of positions p and k
        key_valid     key_valid[b, k]                   (a bool node [B|1, Sk])
        segments      query_id[b, q] == key_id[b, k]

    ``masked_value`` is how the mask's spelling excludes an entry: "-inf" (bool masks of SDPA, -inf in float
    masks) or "finfo.min" (a row that allows no key is then the mean of all values); "-inf" too where no row
    can be without a key. ``rows_may_be_empty``: it is not proven that causality, window and chunk leave every
    row at least one key (padding and segments not counted). ``start`` is an int64 node without dimensions, on
    the CPU: the part of the offset that only a running graph knows, such as the length of a static cache; it
    is taken for granted that it leaves the first row a key, and whoever reads it checks that.
    """

    causal: bool
    q_offset: Size = sympy.Integer(0)
    window: Size | None = None
    chunk: Chunk | None = None
    key_valid: fx.Node | None = None
    segments: Segments | None = None
    masked_value: str = "-inf"
    rows_may_be_empty: bool = False
    start: fx.Node | None = None

    @property
    def is_full(self) -> bool:
        """Nothing is masked."""
        return not self.causal and self.chunk is None and self.key_valid is None and self.segments is None

    @property
    def is_plain_causal(self) -> bool:
        """Causal with an offset and at most key padding: what sampling may take."""
        return self.causal and self.window is None and self.chunk is None and self.segments is None

    @property
    def may_have_empty_rows(self) -> bool:
        """Some row may allow no key, as far as is proven."""
        return self.rows_may_be_empty or self.key_valid is not None or self.segments is not None

    def __str__(self) -> str:
        parts = []
        if self.start is not None:
            parts.append("causal(offset read when it runs)")
        elif self.causal:
            parts.append("causal" if self.q_offset == 0 else f"causal(offset={self.q_offset})")
        if self.window is not None:
            parts.append(f"window({self.window})")
        if self.chunk is not None:
            parts.append(f"chunk({self.chunk.size})")
        if self.key_valid is not None:
            parts.append("key_valid")
        if self.segments is not None:
            parts.append("segments")
        return " & ".join(parts) or "none"


@dataclass(frozen=True)
class NotProven:
    """Why a mask could not be proven, and the node that stopped the proof.

    ``refuted``: its entries are known, whatever the inputs, and are those of no predicate.
    """

    reason: str
    node: fx.Node | None
    refuted: bool = False

    def __str__(self) -> str:
        return f"{self.reason} (at {self.node})" if self.node is not None else self.reason


@dataclass(frozen=True)
class LateMask:
    """A mask that is not proven, but whose entries the graph can read when it runs."""

    mask: fx.Node  # [B|1, 1, Sq, Sk], or with dims left out in front: bool, or floats that are added
    not_proven: NotProven
