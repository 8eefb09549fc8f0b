"""The two matrix products of an attention, whatever they are spelt with, as operands ``[B, H, S, D]``.

``matmul`` (function, method, ``@``), ``bmm`` and ``baddbmm`` on ``[B * H, S, D]``, ``einsum`` with any
labels::

    %key_t = %key.transpose(-1, -2)
    %scores = torch.matmul(%query, %key_t)             # query, key
    %scores = torch.einsum("bqhd,bkhd->bhqk", %q, %k)  # q and k, each permuted by (0, 2, 1, 3)
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..graph.emitter import Emitter
from ..graph.nodes import argument, is_tensor, rank, shape
from ..graph.operations import calls
from ..graph.sizes import as_expr, fixed, required_equal, same_shape
from .repeats import permutation

_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum")
_RESHAPES = ("view", "reshape", "flatten")

Heads = tuple[Any, Any]  # batch and heads, for tensors that merge the two


class NotUnderstood(Exception):
    """The product is no attention product that the ops can take; the message says why, in words."""


def is_product(node: Any) -> bool:
    """The node multiplies two batches of matrices."""
    return calls(node, *_PRODUCTS)


def score_operands(emitter: Emitter, node: fx.Node, heads: Heads | None) -> tuple[fx.Node, fx.Node]:
    """Query ``[B, Hq, Sq, D]`` and key ``[B, H, Sk, D]`` of the product that makes the scores.

    Raises ``NotUnderstood``.
    """
    if calls(node, "einsum"):
        (left, right), inputs, output = _einsum(node)
        return _einsum_score_operands(emitter, left, right, inputs, output)
    left, right = _factors(node)
    query = split_heads(emitter, left, heads)
    if _swaps_last_two(right):
        key = split_heads(emitter, argument(right, 0, "input"), heads)
    else:
        key = transposed(emitter, split_heads(emitter, right, heads))
    return query, key


def value_operand(
    emitter: Emitter, node: fx.Node, weights: fx.Node, heads: Heads | None
) -> tuple[fx.Node, tuple[int, ...]]:
    """Value ``[B, H, Sk, Dv]`` of the product with the weights, and the order of dimensions of its result.

    Raises ``NotUnderstood``.
    """
    if calls(node, "einsum"):
        (left, right), inputs, output = _einsum(node)
        if left is not weights:
            left, right, inputs = right, left, inputs[::-1]
        return _einsum_value_operand(emitter, right, inputs, output)
    left, right = _factors(node)
    if left is not weights:
        raise NotUnderstood("the weights are not the left factor of the product with value")
    return split_heads(emitter, right, heads), (0, 1, 2, 3)


def split_heads(emitter: Emitter, node: fx.Node, heads: Heads | None) -> fx.Node:
    """``node`` as ``[B, H, ...]``: the tensor that it merges, or a view of it."""
    if rank(node) == 4:
        return node
    if rank(node) == 2:
        return emitter.method("unsqueeze", emitter.method("unsqueeze", node, 0), 0)
    if rank(node) != 3:
        raise NotUnderstood(f"a product of rank {rank(node)}: expected [B, H, S, D] or [B * H, S, D]")
    if heads is None:  # [N, S, D]: N attentions of one head
        return emitter.method("unsqueeze", node, 1)
    source = node.args[0] if calls(node, *_RESHAPES) else None
    if is_tensor(source) and rank(source) == 4 and same_shape(shape(source), (*heads, *shape(node)[1:])):
        return source
    if as_expr(shape(node)[0]) != as_expr(heads[0]) * as_expr(heads[1]):
        raise NotUnderstood(f"{shape(node)[0]} matrices are not batch x heads = {heads[0]} x {heads[1]}")
    return emitter.method("unflatten", node, 0, (-1, fixed(heads[1])))


def transposed(emitter: Emitter, node: fx.Node) -> fx.Node:
    """``node`` with its last two dimensions swapped."""
    return argument(node, 0, "input") if _swaps_last_two(node) else emitter.method("transpose", node, -1, -2)


def _swaps_last_two(node: fx.Node) -> bool:
    order = permutation(node)
    last = rank(node) - 1
    return order == (*range(last - 1), last, last - 1)


def heads_of_product(node: fx.Node) -> Heads | None:
    """Batch and heads of the query ``[B, H, S, D]`` that a product of ``[B * H, S, D]`` reads reshaped."""
    if calls(node, "einsum"):
        return None
    node = _factors(node)[0]
    source = node.args[0] if rank(node) == 3 and calls(node, *_RESHAPES) else None
    if not is_tensor(source) or rank(source) != 4:
        return None
    batch, heads, *matrix = shape(source)
    return (batch, heads) if same_shape(matrix, shape(node)[1:]) else None


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    first = 1 if calls(node, "baddbmm") else 0
    names = ("batch1", "batch2") if first else ("input", "other")
    left = argument(node, first, names[0])
    right = argument(node, first + 1, names[1], node.kwargs.get("mat2"))
    if not is_tensor(left) or not is_tensor(right) or rank(left) != rank(right):
        raise NotUnderstood("factors of different rank")
    return left, right


def _einsum(node: fx.Node) -> tuple[tuple[fx.Node, fx.Node], tuple[str, str], str]:
    """Both operands, their labels and the result's; an ellipsis becomes labels of its own."""
    operands = node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    equation = node.args[0]
    if not isinstance(equation, str) or "->" not in equation or len(operands) != 2:
        raise NotUnderstood(f"einsum {equation!r}: expected two operands and a result")
    left, right = operands
    if not is_tensor(left) or not is_tensor(right):
        raise NotUnderstood("einsum of something else than two tensors")
    inputs, output = equation.replace(" ", "").split("->")
    labels = inputs.split(",")
    if "..." in equation:
        batch = "ABCDEFGH"[: rank(left) - len(labels[0].replace("...", ""))]
        labels = [label.replace("...", batch) for label in labels]
        output = output.replace("...", batch)
    if [len(label) for label in labels] != [rank(left), rank(right)]:
        raise NotUnderstood(f"einsum {equation!r} broadcasts its operands")
    if any(len(set(label)) != len(label) for label in (*labels, output)):
        raise NotUnderstood(f"einsum {equation!r} takes a diagonal")
    return (left, right), (labels[0], labels[1]), output


def _einsum_score_operands(
    emitter: Emitter, left: fx.Node, right: fx.Node, inputs: tuple[str, str], output: str
) -> tuple[fx.Node, fx.Node]:
    if output[-1] in inputs[0]:
        left, right, inputs = right, left, inputs[::-1]
    batch, row, column = output[:-2], output[-2], output[-1]
    summed = [label for label in inputs[0] if label in inputs[1] and label not in output]
    if len(batch) != 2 or len(summed) != 1:
        raise NotUnderstood(f"einsum {inputs[0]},{inputs[1]}->{output} is no product of query and key heads")
    query = _permuted(emitter, left, inputs[0], batch + row + summed[0])
    return query, _permuted(emitter, right, inputs[1], batch + column + summed[0])


def _einsum_value_operand(
    emitter: Emitter, node: fx.Node, inputs: tuple[str, str], output: str
) -> tuple[fx.Node, tuple[int, ...]]:
    weights, labels = inputs
    if len(weights) != 4:
        raise NotUnderstood(f"einsum with weights of rank {len(weights)}: expected [B, H, Sq, Sk]")
    new = [label for label in labels if label not in weights]
    result = weights[:3] + "".join(new)
    if len(new) != 1 or sorted(result) != sorted(output):
        raise NotUnderstood(f"einsum {weights},{labels}->{output} is no product of weights and value heads")
    value = _permuted(emitter, node, labels, weights[:2] + weights[3] + new[0])
    return value, tuple(result.index(label) for label in output)


def _permuted(emitter: Emitter, node: fx.Node, labels: str, wanted: str) -> fx.Node:
    if sorted(labels) != sorted(wanted):
        raise NotUnderstood(f"einsum operand with labels {labels}: expected {wanted} in any order")
    return emitter.permute(node, tuple(labels.index(label) for label in wanted))


def head_obstacle(query: fx.Node, key: fx.Node, value: fx.Node) -> str | None:
    """Why query, key and value (rank 4) do not fit together as grouped heads; None if they do."""
    sizes = [tuple(shape(x)) for x in (query, key, value)]
    if not all(required_equal(sizes[0][0], s[0]) for s in sizes):
        return "query, key and value differ in batch size"
    if not all(required_equal(sizes[1][dim], sizes[2][dim]) for dim in (1, 2)):
        return "key and value differ in heads or length"
    if not required_equal(sizes[0][3], sizes[1][3]):
        return "query and key differ in head_dim"
    heads, kv_heads = fixed(sizes[0][1]), fixed(sizes[1][1])
    if kv_heads == 0 or heads % kv_heads:
        return f"{heads} query heads are no multiple of {kv_heads} key heads"
    return None
