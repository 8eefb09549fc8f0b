"""Find ``scaled_dot_product_attention`` in every spelling.

Positional, keyword, ``is_causal``, ``enable_gqa``, mask, scale as a number or (``dynamic=True``) as a graph
node::

    %sdpa = torch._C._nn.scaled_dot_product_attention(%q, %key, %value, attn_mask=%mask, scale=0.25)

becomes ``AttentionSite(output=%sdpa, query=%q, key=<before repeat_kv>, value=..., mask=%mask, ...)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..graph import autocast
from ..graph.autocast import Regions
from ..graph.emitter import Emitter
from ..graph.nodes import argument, is_tensor, module_path, number, rank
from ..graph.operations import calls
from ..graph.scan import GraphScan
from ..site import AttentionSite
from .matrix_products import head_obstacle
from .read_order import ReadOrder


def find(scan: GraphScan) -> list[AttentionSite]:
    """Every SDPA call of this graph, in order; child graph modules are not entered."""
    read_order = ReadOrder(scan)
    sites = []
    pinned = False
    for node in scan.captured:
        if node.target is torch.nn.attention._sdpa_kernel:
            pinned = not _allows_every_backend(node)
        if calls(node, "scaled_dot_product_attention"):
            sites.append(_site(node, pinned, read_order, scan.autocast))
    return sites


def _allows_every_backend(node: fx.Node) -> bool:
    """``sdpa_kernel`` sets a list of backends on entry, and the former list on exit; the default allows
    them all."""
    backends = argument(node, 0, "backends", ())
    return len(backends) >= len(torch.nn.attention._backend_names)


def _site(node: fx.Node, pinned: bool, read_order: ReadOrder, regions: Regions) -> AttentionSite:
    query, key, value = (argument(node, i, name) for i, name in enumerate(("query", "key", "value")))
    mask = argument(node, 3, "attn_mask")
    dropout_p = argument(node, 4, "dropout_p", 0.0)
    is_causal = argument(node, 5, "is_causal", False)
    scale: Any = node.kwargs.get("scale")
    known_scale = number(scale) if scale is not None else None
    repeats = False
    obstacle = read_order.obstacle(node) or ("pinned SDPA backend" if pinned else None)
    obstacle = obstacle or _obstacle(query, key, value, mask, is_causal)
    if scale is not None and known_scale is None:
        obstacle = obstacle or f"scale {scale} is not a number"
    if obstacle is None:
        emitter = Emitter(node)
        if rank(query) == 3:  # [N, S, D]: N attentions of one head
            query, key, value = (emitter.method("unsqueeze", x, 1) for x in (query, key, value))
            if mask is not None and rank(mask) == 3:
                mask = emitter.method("unsqueeze", mask, 1)
        key, value, repeats = read_order.unrepeated(emitter, node, query, key, value)
        obstacle = head_obstacle(query, key, value)
        query, key, value = (autocast.operand(emitter, x, node) for x in (query, key, value))
        mask = regions.mask(emitter, mask, node)
    return AttentionSite(
        spelling="sdpa",
        output=node,
        query=query,
        key=key,
        value=value,
        mask=mask,
        is_causal=bool(is_causal),
        scale=scale if known_scale is None else known_scale,
        dropout_p=dropout_p,
        covered=(node,),
        module_path=module_path(node),
        obstacle=obstacle,
        repeats=repeats,
    )


def _obstacle(query: Any, key: Any, value: Any, mask: Any, is_causal: Any) -> str | None:
    if not all(map(is_tensor, (query, key, value))):
        return "query, key or value is not a tensor of this graph"
    if rank(query) not in (3, 4) or {rank(key), rank(value)} != {rank(query)}:
        return f"query of rank {rank(query)}: expected [B, H, S, D]"
    if mask is not None and not is_tensor(mask):
        return f"mask {mask} is not a tensor of this graph"
    if not isinstance(is_causal, bool):
        return f"is_causal={is_causal} is not known at compile time"
    return None
