"""What must hold of a rewritten graph: no tensor of the size of the scores is left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from ..graph.nodes import value
from ..graph.sizes import plain
from ..site_record import SiteRecord


def score_shaped_nodes(gm: fx.GraphModule, sites: Iterable[SiteRecord]) -> list[fx.Node]:
    """Nodes, also of child graph modules, that hold a ``[..., Sq, Sk]`` tensor of one of these sites.

    ``sites``: records of the sites that were rewritten. Tensors of three and more dimensions count; sizes are
    compared as the records hold them. A tensor ``[..., S, D]`` with D = Sk is reported too: choose sizes
    that differ.
    """
    lengths = {(site.q_len, site.kv_len) for site in sites if site.rewritten}
    return [
        node
        for module in gm.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
        if _has_lengths(value(node), lengths)
    ]


def _has_lengths(held: Any, lengths: set[tuple[int | str, int | str]]) -> bool:
    if not isinstance(held, torch.Tensor) or held.dim() < 3:
        return False
    return (plain(held.shape[-2]), plain(held.shape[-1])) in lengths
