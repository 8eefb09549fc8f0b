"""Find attention that is written out: product, scale, mask, softmax, product.

Anchored on the softmax. The form of transformers, with grouped heads repeated::

    %key_t = %repeated_key.transpose(2, 3)
    %scores = torch.matmul(%query, %key_t)
    %scaled = %scores * 0.25
    %masked = %scaled + %mask
    %softmax = F.softmax(%masked, dim=-1, dtype=torch.float32)
    %weights = %softmax.to(torch.bfloat16)
    %dropped = F.dropout(%weights, p=0.0, training=False)
    %output = torch.matmul(%dropped, %repeated_value)

becomes ``AttentionSite(output=%output, query=%query, key=<before repeat_kv>, mask=%mask, scale=0.25,
...)``, with the sinks of ``sinks.py`` if it has any. What is like attention but holds something else
(softcap, weights that are returned) is a site with an ``obstacle``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..graph import autocast
from ..graph.emitter import Emitter
from ..graph.nodes import argument, has_plain_floats, is_tensor, module_path, normal_dim, rank, shape, value
from ..graph.operations import CASTS, RESHAPES, called, calls, label, operation
from ..graph.scan import GraphScan
from ..graph.sizes import same_shape, same_size
from ..site import AttentionSite
from .matrix_products import (
    Heads,
    NotUnderstood,
    head_obstacle,
    heads_of_product,
    is_product,
    score_operands,
    value_operand,
)
from .read_order import ReadOrder
from .repeats import unrepeat_pair
from .scores import Scores, find_scores
from .sinks import Gate, Sinks, drops_last_column, gate_of

_SOFTMAX = ("softmax", "_softmax", "special_softmax")


def find(scan: GraphScan) -> list[AttentionSite]:
    """Every written-out attention of this graph, in order; child graph modules are not entered."""
    read_order = ReadOrder(scan)
    sites = []
    for node in scan.captured:
        if calls(node, *_SOFTMAX) and is_tensor(node) and _is_over_keys(node):
            site = _site(node, read_order)
            if site is not None:
                sites.append(site)
    return sites


def _is_over_keys(softmax: fx.Node) -> bool:
    dim = argument(softmax, 1, "dim")
    return rank(softmax) >= 2 and isinstance(dim, int) and normal_dim(dim, rank(softmax)) == rank(softmax) - 1


@dataclass
class _Weights:
    """What lies between the softmax and the product with value."""

    product: fx.Node
    operand: fx.Node  # the weights as the product reads them
    covered: list[fx.Node] = field(default_factory=list)
    dropout_p: float | fx.Node = 0.0
    heads: Heads | None = None
    dropped: fx.Node | None = None  # what leaves out the last column
    obstacle: str | None = None


def _site(softmax: fx.Node, read_order: ReadOrder) -> AttentionSite | None:
    scores = find_scores(softmax, read_order.captured)
    weights = _find_weights(softmax)
    if scores is None or weights is None:
        return None
    obstacle = read_order.obstacle(softmax) or scores.obstacle or weights.obstacle
    site = None
    if obstacle is None:
        try:
            site = _understood(softmax, scores, weights, read_order)
        except NotUnderstood as reason:
            obstacle = str(reason)
    return site or _obstructed(softmax, scores, weights, obstacle)


def _understood(softmax: fx.Node, scores: Scores, weights: _Weights, read_order: ReadOrder) -> AttentionSite:
    """The site, with operands brought to ``[B, H, S, D]``. Raises ``NotUnderstood``."""
    product, gate = weights.product, gate_of(weights.product, softmax)
    output = gate.output if gate is not None else product
    sinks = _sinks(scores, weights, gate)
    parts = sinks.covered if sinks is not None else ()
    covered = tuple(dict.fromkeys((*scores.covered, softmax, *weights.covered, product, *parts, output)))
    read_order.check_only_read_by(covered, output)
    emitter = Emitter(output)
    heads = scores.heads or weights.heads or heads_of_product(scores.product)
    query, key = score_operands(emitter, scores.product, heads)
    value_, order = value_operand(emitter, product, weights.operand, heads)
    value_ = autocast.operand(emitter, value_, product)
    query, key = (_score_operand(emitter, x, scores.product, value(value_).dtype) for x in (query, key))
    key, value_, repeats = unrepeat_pair(emitter, key, value_, shape(query)[1])
    obstacle = head_obstacle(query, key, value_)
    if obstacle is not None:
        raise NotUnderstood(obstacle)
    wanted = (shape(query)[0], shape(query)[1], shape(query)[2], shape(key)[2])
    weighed = weights.dropped or softmax
    if rank(weighed) == 4 and not same_shape(shape(weighed), wanted):
        raise NotUnderstood("the mask widens the scores")
    if gate is not None and order != (0, 1, 2, 3):
        raise NotUnderstood("attention sinks: they scale a result whose heads and rows are swapped")
    reads = [(scores.product, query), (scores.product, key), (product, value_)]
    if sinks is not None:
        reads.append((sinks.reader, sinks.logits))
    if gate is not None:  # softmax and lse must have read the same scores
        reads.append((min(softmax, gate.lse), gate.scores))
    read_order.check_unchanged(reads, covered, output)
    return AttentionSite(
        spelling=_spelling(scores.product, product) + (" with sinks" if sinks is not None else ""),
        output=output,
        query=_scaled(emitter, query, scores),
        key=key,
        value=value_,
        mask=_mask(emitter, scores, heads),
        is_causal=False,
        scale=scores.scale,
        dropout_p=weights.dropout_p,
        covered=covered,
        module_path=module_path(output),
        softmax_empty_rows="softmax" if scores.sinks is None else "zero",
        output_order=order,
        repeats=repeats,
        sinks=sinks.emit(emitter) if sinks is not None else None,
        mask_scaled=scores.mask_scaled,
    )


def _sinks(scores: Scores, weights: _Weights, gate: Gate | None) -> Sinks | None:
    """The sinks of either spelling. Raises ``NotUnderstood``."""
    if scores.sinks is None:
        if weights.dropped is not None:
            raise NotUnderstood(f"{label(weights.dropped)} between softmax and the product with value")
        if gate is not None and scores.shifted:
            raise NotUnderstood("attention sinks: beside scores whose maximum was subtracted")
        return gate.sinks if gate is not None else None
    if weights.dropped is None:
        raise NotUnderstood("attention sinks: their column is not dropped after softmax")
    if gate is not None:
        raise NotUnderstood("attention sinks: twice")
    return scores.sinks


def _find_weights(softmax: fx.Node) -> _Weights | None:
    """Follow the weights from the softmax to the product with value; None if no product reads them."""
    product = _product_ahead(softmax)
    if product is None:
        return None
    weights = _Weights(product, softmax)
    node = softmax
    while True:
        readers = list(node.users)
        if len(readers) != 1:
            weights.obstacle = "attention weights are an output: something else reads them too"
            return weights
        (reader,) = readers
        if is_product(reader):
            weights.product, weights.operand = reader, node
            return weights
        weights.covered.append(reader)
        if not is_tensor(reader) or not has_plain_floats(reader):
            weights.obstacle = f"{label(reader)} between softmax and the product with value"
            return weights
        step = operation(reader).removesuffix("_")
        if step == "dropout" and reader.args[:1] == (node,):
            weights.dropout_p = _dropout_p(reader)
        elif step in RESHAPES and same_shape(shape(node)[-2:], shape(reader)[-2:]):
            for sizes in (tuple(shape(node)), tuple(shape(reader))):
                if len(sizes) == 4:
                    weights.heads = (sizes[0], sizes[1])
        elif step in ("getitem", "narrow") and weights.dropped is None and drops_last_column(reader):
            weights.dropped = reader
        elif step not in CASTS or reader.args[:1] != (node,):
            weights.obstacle = f"{label(reader)} between softmax and the product with value"
            return weights
        node = reader


def _dropout_p(node: fx.Node) -> float | fx.Node:
    training = argument(node, 2, "training", node.kwargs.get("train", True))
    return argument(node, 1, "p", 0.5) if training else 0.0


def _product_ahead(node: fx.Node, depth: int = 8) -> fx.Node | None:
    """The nearest product that reads the weights, through elementwise steps and views."""
    level = [node]
    for _ in range(depth):
        level = [reader for source in level for reader in source.users if is_tensor(reader)]
        for reader in level:
            if is_product(reader):
                return reader
            if called(reader) in ("linear", "softmax", "layer_norm"):
                return None
    return None


def _score_operand(emitter: Emitter, node: fx.Node, product: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Query or key without an upcast to float32, or as autocast casts it for the product."""
    plain = _without_upcast(node, dtype)
    return autocast.operand(emitter, plain, product) if value(product).dtype != value(node).dtype else plain


def _without_upcast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Query or key before ``.float()``: the ops accumulate in float32 anyway."""
    while calls(node, "to", "float", "type") and is_tensor(node.args[0]):
        source = node.args[0]
        same_dtype = value(source).dtype == value(node).dtype
        upcast = value(node).dtype == torch.float32 and value(source).dtype == dtype
        if not (same_dtype or upcast) or value(source).device != value(node).device:
            break
        node = source
    return node


def _scaled(emitter: Emitter, query: fx.Node, scores: Scores) -> fx.Node:
    """A scale that is a tensor of one element goes to the query."""
    for how, scale in scores.tensor_scales:
        query = emitter.to_dtype(emitter.method(how, query, scale), value(query).dtype)
    return query


def _mask(emitter: Emitter, scores: Scores, heads: Heads | None) -> fx.Node | None:
    """All masks as one that broadcasts to ``[B, Hq, Sq, Sk]``, in the order in which they were added."""
    total = None
    for mask, rank_there in reversed(scores.masks):
        if rank_there == 3:
            mask = _before_expand(mask)
            if rank(mask) == 3 and not same_size(shape(mask)[0], 1):
                mask = _merged_heads(mask, heads)
        total = mask if total is None else emitter.function(torch.add, total, mask)
    if total is not None and scores.floor is not None:
        return emitter.function(torch.clamp, total, min=scores.floor)
    return total


def _merged_heads(mask: fx.Node, heads: Heads | None) -> fx.Node:
    """The ``[B, H, Sq, Sk]`` that a mask ``[B * H, Sq, Sk]`` was reshaped from."""
    source = mask.args[0] if calls(mask, "view", "reshape", "flatten") else None
    whole = (*(heads or ()), *shape(mask)[1:])
    if not is_tensor(source) or not same_shape(shape(source), whole):
        raise NotUnderstood(f"{mask} is added to the scores of each head (ALiBi, relative positions)")
    return source


def _before_expand(mask: fx.Node) -> fx.Node:
    """A mask ``[Sq, Sk]`` or ``[1, Sq, Sk]`` that was expanded to all heads, before that."""
    while calls(mask, "expand", "broadcast_to") and is_tensor(mask.args[0]):
        source = mask.args[0]
        leads = rank(source) == 2 or (rank(source) == 3 and same_size(shape(source)[0], 1))
        if not leads or not same_shape(shape(source)[-2:], shape(mask)[-2:]):
            break
        mask = source
    return mask


def _spelling(*products: fx.Node) -> str:
    names = [operation(product) for product in products]
    return "eager" if set(names) == {"matmul"} else "eager (" + ", ".join(dict.fromkeys(names)) + ")"


def _obstructed(softmax: fx.Node, scores: Scores, weights: _Weights, obstacle: str | None) -> AttentionSite:
    """A site for the report only."""

    def operand(node: fx.Node, position: int) -> Any:
        tensors = [x for x in node.all_input_nodes if is_tensor(x)]
        return tensors[min(position, len(tensors) - 1)]

    return AttentionSite(
        spelling=_spelling(scores.product, weights.product),
        output=weights.product,
        query=operand(scores.product, 0),
        key=operand(scores.product, 1),
        value=operand(weights.product, 1),
        mask=None,
        is_causal=False,
        scale=None,
        dropout_p=0.0,
        covered=(),
        module_path=module_path(softmax),
        obstacle=obstacle,
        softmax_empty_rows="softmax",
        rows_and_keys=(shape(softmax)[-2], shape(softmax)[-1]),
    )
