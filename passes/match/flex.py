"""Find ``flex_attention``, whose mask is a function and whose blocks are lists.

A score_mod that multiplies by a constant becomes part of the scale; what mask_mod allows becomes a mask that
the prover reads (``mask_mod.py``). The lists are tensors: they say which blocks are computed at all, and in
which of them mask_mod is not asked, so that the mask alone means the attention only if they were made of it::

    %flex = flex_attention(%q, %k, %v, %score_mod_0, (Sq, Sk, %counts, %blocks, ..., 128, 128, %mask_0), .25)
    %out = getitem(%flex, 0)

becomes ``AttentionSite(output=%out, mask=<mask_fn_0 for all entries>, lists=BlockLists(%counts, ...), ...)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import fx

from ..graph import autocast
from ..graph.emitter import Emitter
from ..graph.nodes import is_tensor, module_path, number, rank, value
from ..graph.operations import calls, is_higher_order, operation
from ..graph.regions import region_of
from ..graph.scan import GraphScan
from ..graph.writes import changes_in_place
from ..site import AttentionSite, BlockLists
from .mask_mod import constant_factor, mask_of
from .matrix_products import NotUnderstood, head_obstacle
from .read_order import ReadOrder


def find(scan: GraphScan) -> list[AttentionSite]:
    """Every call of ``flex_attention`` in this graph, in order; child graph modules are not entered."""
    read_order = ReadOrder(scan)
    sites = []
    for node in scan.captured:
        if is_higher_order(node, "flex_attention"):
            results = {reader.args[1]: reader for reader in node.users if calls(reader, "getitem")}
            if 0 in results:
                sites.append(_site(node, results, read_order, scan))
    return sites


def _site(
    node: fx.Node, results: dict[Any, fx.Node], read_order: ReadOrder, scan: GraphScan
) -> AttentionSite:
    query, key, value_ = node.args[:3]
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value_, fx.Node)
    unread = [dead for item in results.values() for dead in _if_nobody_reads(item)]
    site = AttentionSite(
        spelling="flex_attention",
        output=results[0],
        query=query,
        key=key,
        value=value_,
        mask=None,
        is_causal=False,
        scale=None,
        dropout_p=0.0,
        covered=(node, results[0], *unread),
        module_path=module_path(node),
        obstacle=read_order.obstacle(node),
    )
    try:
        return site if site.obstacle is not None else _understood(site, node, results, read_order, scan)
    except NotUnderstood as why:
        return replace(site, obstacle=str(why))


def _understood(
    site: AttentionSite, node: fx.Node, results: dict[Any, fx.Node], read_order: ReadOrder, scan: GraphScan
) -> AttentionSite:
    operands: tuple[Any, ...] = (*node.args[3:], (), ())
    score_mod, blocks, scale, options, _, captured = operands[:6]
    for item, name in ((1, "logsumexp"), (2, "largest scores")):
        if item in results and results[item] not in site.covered:
            raise NotUnderstood(f"flex_attention: its {name} are read too")
    backend = options.get("BACKEND", "AUTO")
    if backend != "AUTO":
        raise NotUnderstood(f"pinned backend of flex_attention: {backend}")
    factor = constant_factor(_module(score_mod))
    if factor is None or number(scale) is None:
        raise NotUnderstood("flex_attention: its score_mod does more than multiply by a constant")
    lists = _lists(blocks)
    tensors = (lists.counts, lists.indices, lists.full_counts, lists.full_indices)
    if any(x is not None and scan.mutations.between(x, site.output) for x in tensors):
        raise NotUnderstood("flex_attention: its block lists are changed in place")
    if {rank(x) for x in (site.query, site.key, site.value)} != {4}:
        raise NotUnderstood(f"query of rank {rank(site.query)}: expected [B, H, S, D]")
    emitter = Emitter(node)
    try:
        mask = mask_of(emitter, _module(blocks[-1]), captured, site.query, site.key)
    except NotUnderstood as why:
        raise NotUnderstood(f"flex_attention: its mask_mod is not understood: {why}") from why
    key, value_, repeats = read_order.unrepeated(emitter, node, site.query, site.key, site.value)
    obstacle = head_obstacle(site.query, key, value_)
    query, key, value_ = (autocast.operand(emitter, x, site.output) for x in (site.query, key, value_))
    return replace(
        site,
        query=query,
        key=key,
        value=value_,
        mask=mask,
        scale=number(scale) * factor,  # type: ignore[operator]
        obstacle=obstacle,
        repeats=repeats,
        lists=lists,
    )


def _module(body: Any) -> fx.GraphModule:
    module = region_of(body) if isinstance(body, fx.Node) else None
    if module is None:
        raise NotUnderstood("flex_attention: its functions are not in the graph")
    return module


def _lists(blocks: Any) -> BlockLists:
    """Of what ``BlockMask.as_tuple`` holds: in front lengths and lists, behind them the blocks' sizes."""
    counts, indices, full_counts, full_indices = blocks[2:6]
    block_q, block_k = blocks[-3:-1]
    known = all(map(is_tensor, (counts, indices))) and isinstance(block_q, int) and isinstance(block_k, int)
    if not known or (full_counts is None) != (full_indices is None):
        raise NotUnderstood("flex_attention: its block lists are not tensors of the graph")
    return BlockLists(counts, indices, full_counts, full_indices, block_q, block_k)


def _if_nobody_reads(node: fx.Node) -> Iterator[fx.Node]:
    """The node and what is made of it, if all of that has no reader: what Dynamo captured of results that
    the caller threw away."""
    made = list(_made_of(node))
    dead = all(operation(one) and not changes_in_place(one) and is_tensor(one) for one in made)
    if dead and value(node) is not None:
        yield from made


def _made_of(node: fx.Node) -> Iterator[fx.Node]:
    yield node
    for reader in node.users:
        yield from _made_of(reader)
