"""Which masks that are not proven can be read, entry by entry, when the graph runs (``rewrite/late.py``)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from ..graph.nodes import is_tensor, shape, value
from ..graph.operations import is_foreign
from ..graph.scan import GraphScan
from ..graph.sizes import same_size
from ..site import AttentionSite
from .predicate import LateMask, NotProven


def readable(site: AttentionSite, not_proven: NotProven, scan: GraphScan) -> LateMask | NotProven:
    """The mask as one that is read when the graph runs, or why it stays unknown, with the way out."""
    mask, stopped = site.mask, not_proven.node
    if mask is None or not_proven.refuted:
        return not_proven
    if stopped is not None and is_foreign(stopped):
        return not_proven  # what is not torch's stays as it was, with all that rests on it
    if site.lists is not None:
        return not_proven  # what is read of it are the blocks
    bool_of_sdpa = site.spelling == "sdpa" and value(mask).dtype == torch.bool
    if not bool_of_sdpa and not _is_added(site, mask, stopped):
        return replace(not_proven, reason=f"{not_proven.reason}; SDPA's bool masks are read when they run")
    sizes = (1, 1, *shape(mask))[-4:]
    wanted = (shape(site.query)[0], 1, shape(site.query)[2], shape(site.key)[2])
    fits = all(same_size(a, b) for a, b in zip(sizes[1:], wanted[1:], strict=True))
    if not fits or not (same_size(sizes[0], 1) or same_size(sizes[0], wanted[0])):
        return not_proven
    if _changes(mask, site.output, scan):
        return not_proven  # layers would read different masks
    return LateMask(mask, not_proven)


def _is_added(site: AttentionSite, mask: fx.Node, stopped: fx.Node | None) -> bool:
    """A float mask that is added to the scores as softmax reads them, from outside of the graph or chosen by
    conditions. What the graph computes in floats is a bias.
    """
    if not site.spelling.startswith("eager") or site.sinks is not None or site.mask_scaled:
        return False
    if not is_tensor(stopped) or not value(mask).dtype.is_floating_point:
        return False
    return stopped.op == "placeholder" or not value(stopped).dtype.is_floating_point


def _changes(mask: fx.Node, output: fx.Node, scan: GraphScan) -> bool:
    """Something writes to the mask, or to what the matcher made it of, before ``output`` reads it."""
    waiting = [mask]
    while waiting:
        node = waiting.pop()
        if node not in scan.captured:
            waiting += node.all_input_nodes
        elif scan.mutations.between(node, output):
            return True
    return False
