"""A predicate as a bool tensor: what the tests compare with the real mask."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
import torch
from torch import fx

from .predicate import MaskPredicate, Size


def evaluate(
    predicate: MaskPredicate,
    q_len: int,
    kv_len: int,
    values: Mapping[fx.Node, torch.Tensor],
    symbols: Mapping[sympy.Symbol, int] | None = None,
) -> torch.Tensor:
    """``allowed`` as bool [B|1, 1, q_len, kv_len].

    ``values`` holds the tensors of the predicate's nodes, ``symbols`` the values of the shape symbols.
    """

    def number(size: Size) -> int:
        return int(sympy.sympify(size).subs(dict(symbols or {})))

    position = torch.arange(q_len)[:, None] + number(predicate.q_offset)  # [Sq, 1]
    if predicate.start is not None:
        position = position + values[predicate.start]
    key = torch.arange(kv_len)[None, :]  # [1, Sk]
    allowed = torch.ones(1, 1, q_len, kv_len, dtype=torch.bool)
    if predicate.causal:
        allowed = allowed & (key <= position)
    if predicate.window is not None:
        allowed = allowed & (key > position - number(predicate.window))
    if predicate.chunk is not None:
        start = torch.zeros(1, dtype=torch.int64)
        if predicate.chunk.left_pad is not None:
            start = values[predicate.chunk.left_pad]
        start = start[:, None, None, None]  # [B|1, 1, 1, 1]
        size = number(predicate.chunk.size)
        allowed = allowed & ((position - start) // size == (key - start) // size)
    if predicate.key_valid is not None:
        allowed = allowed & values[predicate.key_valid].bool()[:, None, None, :]
    if predicate.segments is not None:
        query_id, key_id = values[predicate.segments.query_id], values[predicate.segments.key_id]
        allowed = allowed & (query_id[:, None, :, None] == key_id[:, None, None, :])
    return allowed
