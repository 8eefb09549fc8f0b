"""Regions: the graph modules that a higher-order operator calls, and where their operands stand."""

from __future__ import annotations

from torch import fx

from .operations import is_higher_order

# Operators whose operands from this position on are the region's inputs, in order.
_FIRST_OPERAND = {"invoke_subgraph": 2, "tag_activation_checkpoint": 1}


def first_operand(call: fx.Node) -> int | None:
    """Position of the operand that a region's first input stands for; None if it is not known."""
    return next((at for name, at in _FIRST_OPERAND.items() if is_higher_order(call, name)), None)


def region_of(body: fx.Node) -> fx.GraphModule | None:
    """The graph module that a ``get_attr`` node reads; None for other nodes."""
    owner = body.graph.owning_module
    if body.op != "get_attr" or owner is None:
        return None
    module = getattr(owner, str(body.target), None)
    return module if isinstance(module, fx.GraphModule) else None
