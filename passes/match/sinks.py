"""Attention sinks: a logit a head that takes part in the softmax and has no value.

Concatenated to the scores, and its column dropped again (gpt-oss)::

    %joined = torch.cat([%scores, %sinks], dim=-1)     # %sinks: one a head, expanded to [B, H, Sq, 1]
    %weights = F.softmax(%joined, dim=-1)[..., :-1]

or as what it takes from the result (Granite SWA)::

    %lse = torch.logsumexp(%scores, dim=-1)
    %share = torch.sigmoid(%lse - %sinks.view(1, -1, 1))
    %output = torch.matmul(F.softmax(%scores, dim=-1), %value) * %share.unsqueeze(-1)

Both are ``out * sigmoid(lse - sink)`` of the attention without them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..graph.emitter import Emitter
from ..graph.nodes import argument, has_plain_floats, held, is_tensor, normal_dim, rank, shape
from ..graph.operations import CASTS, calls
from ..graph.sizes import same_shape, same_size

_EXPANDS = ("expand", "broadcast_to", "expand_as", "repeat")


@dataclass(frozen=True)
class Sinks:
    """``logits`` differ in no dimension but ``heads_dim``, counted from the back; ``reader`` is what reads
    them, ``covered`` what else this spelling is made of."""

    logits: fx.Node
    heads_dim: int
    reader: fx.Node
    covered: tuple[fx.Node, ...] = ()

    def emit(self, emitter: Emitter) -> fx.Node:
        """The logits as ``[Hq]``, or ``[1]`` for all heads alike."""
        index: list[Any] = [0] * rank(self.logits)
        index[self.heads_dim] = slice(None)
        return emitter.function(operator.getitem, self.logits, tuple(index))


@dataclass(frozen=True)
class Gate:
    """``output`` is the product of an attention with ``sigmoid(lse - sink)``; ``lse`` is of ``scores``."""

    output: fx.Node
    lse: fx.Node
    scores: fx.Node
    sinks: Sinks


def joined(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The scores and the column behind them that ``node`` concatenates; None if it is anything else."""
    parts, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not all(map(is_tensor, parts)):
        return None
    if not isinstance(dim, int) or normal_dim(dim, rank(node)) != rank(node) - 1:
        return None
    scores, column = parts
    one = rank(column) == rank(scores) == rank(node) and same_size(shape(column)[-1], 1)
    return (scores, column) if one else None


def is_one_a_head(node: fx.Node, heads_dim: int) -> bool:
    """The entries of a tensor are known to differ along ``heads_dim`` alone, counted from the back."""
    while True:
        if rank(node) >= -heads_dim:
            others = [size for dim, size in enumerate(shape(node), -rank(node)) if dim != heads_dim]
            if all(same_size(size, 1) for size in others):
                return True
        if not calls(node, *CASTS, *_EXPANDS) or not is_tensor(node.args[0]):
            return False
        node = node.args[0]


def drops_last_column(node: fx.Node) -> bool:
    """``weights[..., :-1]``, in any spelling of the index."""
    source = node.args[0] if node.args else None
    if not is_tensor(source) or not is_tensor(node) or rank(source) != rank(node):
        return False
    *before, columns = shape(source)
    *after, left = shape(node)
    if not same_shape(before, after) or not same_size(left + 1, columns):
        return False
    if calls(node, "narrow"):
        dim = argument(node, 1, "dim")
        return (
            isinstance(dim, int) and dim % rank(node) == rank(node) - 1 and _is(argument(node, 2, "start"), 0)
        )
    if not calls(node, "getitem") or not isinstance(node.args[1], tuple):
        return False
    *rest, last = node.args[1]
    whole = all(part is Ellipsis or part == slice(None) for part in rest)
    to_the_end = Ellipsis in rest or len(rest) == rank(node) - 1
    if not whole or not to_the_end or not isinstance(last, slice):
        return False
    return (last.start is None or _is(last.start, 0)) and (last.step is None or _is(last.step, 1))


def gate_of(product: fx.Node, softmax: fx.Node) -> Gate | None:
    """What multiplies the result of an attention by ``sigmoid(lse - sink)`` of its own scores; None if
    nothing does."""
    readers = list(product.users)
    if rank(product) != 4 or len(readers) != 1 or not calls(readers[0], "mul", "multiply"):
        return None
    (output,) = readers
    operands = [argument(output, 0, "input"), argument(output, 1, "other")]
    if operands.count(product) != 1 or not all(map(is_tensor, operands)):
        return None
    factor = operands[1 - operands.index(product)]
    if not same_shape(shape(factor), (*shape(product)[:3], 1)):
        return None
    covered: list[fx.Node] = []
    share = _behind(factor, covered)
    reads = argument(share, 0, "input") if calls(share, "sigmoid") else None
    difference = _behind(reads, covered) if is_tensor(reads) else None
    if not calls(difference, "sub", "subtract") or "alpha" in difference.kwargs:
        return None
    left, logits = argument(difference, 0, "input"), argument(difference, 1, "other")
    if not is_tensor(left) or not is_tensor(logits):
        return None
    lse = _behind(left, covered)
    rows, heads_dim = shape(product)[:3], 1 - rank(left)
    if not same_shape(shape(left), rows if rank(left) == 3 else (*rows, 1)):
        return None
    if not same_shape(shape(left), shape(difference)) or rank(logits) < -heads_dim:
        return None
    if not calls(lse, "logsumexp") or not _over_last(lse) or not is_one_a_head(logits, heads_dim):
        return None
    scores = _cast_of(argument(lse, 0, "input"), covered)
    if scores is None or scores is not _cast_of(argument(softmax, 0, "input"), []):
        return None
    sinks = Sinks(logits, heads_dim, difference, (*covered, share, difference, lse))
    return Gate(output, lse, scores, sinks)


def _behind(node: fx.Node, covered: list[fx.Node]) -> fx.Node:
    """What casts, and dimensions added at the end, were made of."""
    while is_tensor(node) and has_plain_floats(node) and node.args and is_tensor(node.args[0]):
        if not _adds_last_dimension(node) and not calls(node, *CASTS):
            break
        covered.append(node)
        node = node.args[0]
    return node


def _adds_last_dimension(node: fx.Node) -> bool:
    """``x.unsqueeze(-1)``, ``x[..., None]``."""
    if calls(node, "getitem"):
        return node.args[1] == (Ellipsis, None)
    return calls(node, "unsqueeze") and argument(node, 1, "dim") in (-1, rank(node) - 1)


def _cast_of(node: Any, covered: list[fx.Node]) -> fx.Node | None:
    if not is_tensor(node):
        return None
    while calls(node, *CASTS) and is_tensor(node.args[0]) and has_plain_floats(node):
        covered.append(node)
        node = node.args[0]
    return node


def _over_last(node: fx.Node) -> bool:
    dim = argument(node, 1, "dim")
    if isinstance(dim, (list, tuple)) and len(dim) == 1:
        (dim,) = dim
    scores = argument(node, 0, "input")
    return isinstance(dim, int) and is_tensor(scores) and normal_dim(dim, rank(scores)) == rank(scores) - 1


def _is(argument_: Any, number: int) -> bool:
    found = held(argument_)
    return isinstance(found, (int, torch.SymInt)) and same_size(found, number)
