"""Trace repeated key and value heads back to the unrepeated tensor.

Only the order of grouped-query attention counts: each head repeated next to itself (h0 h0 h1 h1), which is
what ``enable_gqa`` and the ops read. A tiled repeat (h0 h1 h0 h1) is left alone. The order is verified on
sizes, not on names: a new dimension of size 1 right behind the heads, expanded, then merged with them.

Before::

    getitem = k[:, :, None, :, :]                 # [B, Hkv, 1, S, D]
    expand = getitem.expand(B, Hkv, n, S, D)
    reshape = expand.reshape(B, Hkv * n, S, D)    # what attention reads

After: attention reads ``k``.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..graph.emitter import Emitter
from ..graph.nodes import argument, is_tensor, normal_dim, rank, shape, value
from ..graph.operations import calls
from ..graph.sizes import fixed, same_shape, same_size

_MERGES = ("reshape", "view", "flatten", "_unsafe_view")
_TRANSPOSES = ("transpose", "swapaxes", "swapdims")


def unrepeat(emitter: Emitter, node: fx.Node, dim: int = 1) -> fx.Node | None:
    """The tensor whose ``dim`` (heads) ``node`` repeats, or None if it repeats nothing.

    The result has the dimensions of ``node``, with fewer heads; nodes are added where only a view leads
    there.
    """
    if not is_tensor(node):
        return None
    for rule in (_through_layout, _repeat_interleave, _expanded_and_merged, _broadcast_head):
        found = rule(emitter, node, dim)
        if found is not None:
            return found
    return None


def _through_layout(emitter: Emitter, node: fx.Node, dim: int) -> fx.Node | None:
    """``transpose(repeat(x))`` is ``repeat(transpose(x))``; the same for permute and contiguous."""
    if calls(node, "contiguous"):
        return unrepeat(emitter, argument(node, 0, "input"), dim)
    order = permutation(node)
    if order is None:
        return None
    found = unrepeat(emitter, argument(node, 0, "input"), order[dim])
    return None if found is None else emitter.permute(found, order)


def permutation(node: fx.Node) -> tuple[int, ...] | None:
    """The order of dimensions that a transpose, permute, ``.mT`` or ``.T`` gives; None for other nodes."""
    if not is_tensor(node):
        return None
    dims = list(range(rank(node)))
    if calls(node, *_TRANSPOSES):
        first, second = (
            argument(node, 1, "dim0", argument(node, 1, "axis0")),
            argument(node, 2, "dim1", argument(node, 2, "axis1")),
        )
        if not isinstance(first, int) or not isinstance(second, int):
            return None
        first, second = normal_dim(first, len(dims)), normal_dim(second, len(dims))
        dims[first], dims[second] = dims[second], dims[first]
        return tuple(dims)
    if calls(node, "permute"):
        order: Any = argument(node, 1, "dims")
        order = node.args[1:] if isinstance(order, int) else order
        if not isinstance(order, (tuple, list)) or not all(isinstance(d, int) for d in order):
            return None
        return tuple(normal_dim(d, len(dims)) for d in order)
    if calls(node, "mT", "mH", "adjoint", "H") and not value(node).is_complex():
        return (*dims[:-2], dims[-1], dims[-2])
    if calls(node, "t", "T"):
        return tuple(reversed(dims))
    return None


def _repeat_interleave(emitter: Emitter, node: fx.Node, dim: int) -> fx.Node | None:
    if not calls(node, "repeat_interleave"):
        return None
    repeats, along = argument(node, 1, "repeats"), argument(node, 2, "dim")
    if not isinstance(repeats, int) or not isinstance(along, int):
        return None
    source = argument(node, 0, "input")
    return source if normal_dim(along, rank(node)) == dim else None


def _expanded_and_merged(emitter: Emitter, node: fx.Node, dim: int) -> fx.Node | None:
    """``reshape(expand(x[:, :, None], n))`` with the copies right behind the heads."""
    if not calls(node, *_MERGES):
        return None
    copies = node.args[0]
    while calls(copies, "contiguous", "clone"):
        copies = copies.args[0]
    if not is_tensor(copies) or rank(copies) != rank(node) + 1:
        return None
    sizes, merged = tuple(shape(copies)), tuple(shape(node))
    if not same_shape(sizes[:dim] + sizes[dim + 2 :], merged[:dim] + merged[dim + 1 :]):
        return None
    if not calls(copies, "expand", "broadcast_to", "repeat", "expand_as"):
        return None
    single = copies.args[0]
    if not is_tensor(single) or not same_shape(shape(single), (*sizes[: dim + 1], 1, *sizes[dim + 2 :])):
        return None
    if calls(single, "unsqueeze") and normal_dim(argument(single, 1, "dim"), rank(single)) == dim + 1:
        return argument(single, 0, "input")
    if calls(single, "getitem") and _is_new_axis(single.args[1], dim + 1, rank(single)):
        return argument(single, 0, "input")
    return emitter.method("squeeze", single, dim + 1)


def _is_new_axis(index: Any, dim: int, of_rank: int) -> bool:
    """The index is ``[:, ..., None at dim, :, ...]`` and takes everything."""
    if not isinstance(index, (tuple, list)) or list(index).count(None) != 1:
        return False
    entries = list(index)
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (of_rank - len(entries) + 1)
    takes_all = all(entry is None or entry == slice(None) for entry in entries)
    return takes_all and entries.index(None) == dim


def _broadcast_head(emitter: Emitter, node: fx.Node, dim: int) -> fx.Node | None:
    """``expand`` of one head to all (multi-query attention)."""
    if not calls(node, "expand", "broadcast_to", "expand_as"):
        return None
    source = node.args[0]
    if not is_tensor(source) or rank(source) != rank(node) or not same_size(shape(source)[dim], 1):
        return None
    others = [d for d in range(rank(node)) if d != dim]
    if not same_shape([shape(source)[d] for d in others], [shape(node)[d] for d in others]):
        return None
    if same_size(shape(node)[dim], 1):
        return None
    return source


def unrepeat_pair(
    emitter: Emitter, key: fx.Node, value: fx.Node, q_heads: Any
) -> tuple[fx.Node, fx.Node, bool]:
    """Key and value (``[B, H, Sk, D]``) before their heads were repeated, and whether they were.

    Both keep their repeats if only one of them repeats, or if the factors differ.
    """
    plain_key, plain_value = unrepeat(emitter, key), unrepeat(emitter, value)
    if plain_key is None or plain_value is None:
        return key, value, False
    heads = fixed(shape(plain_key)[1])
    if heads != fixed(shape(plain_value)[1]) or fixed(q_heads) % heads:
        return key, value, False
    return plain_key, plain_value, True
