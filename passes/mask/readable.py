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
    """The mask as one that is read when the graph runs, or why it is not, beside why it is not proven."""
    mask, stopped = site.mask, not_proven.node
    if mask is None or not_proven.refuted:
        return not_proven
    if stopped is not None and is_foreign(stopped):
        return not_proven  # what is not torch's stays as it was, with all that rests on it
    if site.lists is not None:
        return not_proven  # what is read of it are the blocks
    why = _why_not_read(site, mask, stopped, scan)
    return unread(not_proven, why) if why is not None else LateMask(mask, not_proven)


def unread(not_proven: NotProven, why: str) -> NotProven:
    """A mask that is not proven, and ``why`` it is not read when the graph runs."""
    return replace(not_proven, reason=f"{not_proven.reason}; not read when it runs: {why}")


def _why_not_read(site: AttentionSite, mask: fx.Node, stopped: fx.Node | None, scan: GraphScan) -> str | None:
    dtype = value(mask).dtype
    if dtype != torch.bool and not dtype.is_floating_point:
        return "it is neither bool nor float"
    if site.mask_scaled:
        return "it is scaled together with the scores"
    if dtype != torch.bool and not _is_from_outside_or_chosen(stopped):
        return "its floats are computed in the graph"
    if dtype != torch.bool and site.spelling == "sdpa" and dtype != value(site.query).dtype:
        return f"SDPA adds {dtype} to scores of {value(site.query).dtype}"
    sizes = (1, 1, *shape(mask))[-4:]
    wanted = (shape(site.query)[0], 1, shape(site.query)[2], shape(site.key)[2])
    if not all(same_size(a, b) for a, b in zip(sizes[1:], wanted[1:], strict=True)):
        return "it is not one for all heads, with an entry for each query and key"
    if not same_size(sizes[0], 1) and not same_size(sizes[0], wanted[0]):
        return "it is not one for all prompts, nor one for each"
    if _changes(mask, site.output, scan):
        return "it is written in place, so that layers would read different masks"
    return None


def _is_from_outside_or_chosen(stopped: fx.Node | None) -> bool:
    """The proof stopped at an input of the graph or at a condition; floats that the graph computes are a
    bias."""
    if not is_tensor(stopped):
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
