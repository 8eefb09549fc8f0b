"""``stats=True``: density and measured CRA of every sampled attention, as further outputs of the graph
(``outputs.py``).

Each sampled site of a top-level graph adds one output behind the captured ones: float32 [Hq, 3] with the
columns density (kept blocks / blocks that the mask allows, mean over the batch), smallest CRA and mean CRA
over the batch (CRA: kept share of the softmax mass, smallest over the sampled rows). Nothing the model
computes reads them. Sites in child graph modules have none.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from ..graph.emitter import Emitter
from ..graph.nodes import value

COLUMNS = ("density", "cra_min", "cra_mean")
_BITS = 32


def emit_stats(emitter: Emitter, block_mask: fx.Node, allowed_mask: fx.Node, mass: fx.Node) -> fx.Node:
    """Nodes that compute the stats of one site; float32 [Hq, 3].

    ``block_mask`` int32 [B, Hq, n_query_blocks, words]: the kept blocks; ``allowed_mask``: what the mask
    allows. ``mass`` fp32 [B, Hq]: the CRA of each head.
    """
    kept = _popcount(emitter, block_mask)
    allowed = emitter.method(
        "clamp", _popcount(emitter, allowed_mask), min=1.0
    )  # 0 where all keys are padding
    density = emitter.method("mean", emitter.function(operator.truediv, kept, allowed), 0)
    columns = [density, emitter.method("amin", mass, 0), emitter.method("mean", mass, 0)]
    return emitter.function(torch.stack, columns, 1)


def _popcount(emitter: Emitter, block_mask: fx.Node) -> fx.Node:
    """Number of set bits of each head: float32 [B, H]."""
    shifts = emitter.function(torch.arange, _BITS, dtype=torch.int32, device=value(block_mask).device)
    words = emitter.method("unsqueeze", block_mask, -1)
    bits = emitter.function(operator.and_, emitter.function(operator.rshift, words, shifts), 1)
    return emitter.method("sum", bits, (2, 3, 4), dtype=torch.float32)
