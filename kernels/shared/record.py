"""An op's arguments as a record: its fields, their types and their order are the op's signature.

``Arguments`` of an ``op.py`` is a NamedTuple of tensors and numbers. The schema that torch is given is read
from it (:func:`schema`), and checks, fakes and implementations take it whole. What records have in common are
protocols, so that what works on the group takes any record that has it.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol, get_type_hints

from torch import Tensor

# A number that may be symbolic when a graph is captured: an offset, a length, a count.
Size = Annotated[int, "SymInt"]

_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Size: "SymInt",
    int: "int",
    float: "float",
    bool: "bool",
}


def schema(arguments: Any, returns: str) -> str:
    """The schema, without the op's name, of a record that is a NamedTuple; KeyError for other types."""
    types, defaults = get_type_hints(arguments, include_extras=True), arguments._field_defaults
    fields = (
        f"{_SCHEMA_TYPES[types[name]]} {name}" + (f"={defaults[name]}" if name in defaults else "")
        for name in arguments._fields
    )
    return f"({', '.join(fields)}) -> {returns}"


class CausalRows(Protocol):
    """Rows that weigh the valid keys up to their own positions."""

    @property
    def query(self) -> Tensor: ...  # [B, Hq, Sq, D]
    @property
    def key(self) -> Tensor: ...  # [B, Hkv, Sk, D]
    @property
    def key_segment(self) -> Tensor | None: ...  # int32 [B|1, Sk], 0 for valid keys; None: all are
    @property
    def scale(self) -> float: ...
    @property
    def q_offset(self) -> int: ...


class Segmented(Protocol):
    """Query rows and keys of which a row sees those of its own segment alone."""

    @property
    def query(self) -> Tensor: ...
    @property
    def key(self) -> Tensor: ...
    @property
    def query_segment(self) -> Tensor | None: ...  # int32 [B|1, Sq]; None: all 0
    @property
    def key_segment(self) -> Tensor | None: ...  # int32 [B|1, Sk], negative for keys that nobody sees


class Masked(Segmented, Protocol):
    """What a mask may say: causality from an offset on, a window, segments."""

    @property
    def causal(self) -> bool: ...
    @property
    def q_offset(self) -> int: ...
    @property
    def window(self) -> int: ...  # how many keys up to its own a row sees; 0 or less: all


class Attending(Protocol):
    """Attention over the kept blocks of an index."""

    @property
    def query(self) -> Tensor: ...
    @property
    def key(self) -> Tensor: ...
    @property
    def value(self) -> Tensor: ...  # [B, Hkv, Sk, Dv]
    @property
    def block_mask(self) -> Tensor: ...  # int32 [B|1, Hq|1, n_query_blocks, n_words], see blocks
    @property
    def block_q(self) -> int: ...
    @property
    def block_k(self) -> int: ...


class Blocked(Protocol):
    """Query rows and keys in blocks; where a block of rows stands is in ``shapes.row_positions``."""

    @property
    def query(self) -> Tensor: ...
    @property
    def key(self) -> Tensor: ...
    @property
    def q_offset(self) -> int: ...
    @property
    def block_q(self) -> int: ...
    @property
    def block_k(self) -> int: ...
    @property
    def q_stride(self) -> int: ...
