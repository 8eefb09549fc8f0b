"""What ``torch.autocast`` does to the operands of an attention, as nodes.

SDPA and matrix products are on its lists: under it they cast their operands, e.g. float32 query and key
(rotary embeddings) beside a bfloat16 value. The ops that a rewrite puts in their place are on no list, so
what they read is cast in the graph::

    %sdpa = scaled_dot_product_attention(%q, %k, %v)   # float32, float32, bfloat16 -> bfloat16

is read as ``AttentionSite(query=%q.to(bfloat16), key=%k.to(bfloat16), value=%v, ...)``. Outside autocast both
take operands of one dtype and return it, so the result's dtype says what was cast, in whatever region.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from .emitter import Emitter
from .nodes import is_tensor, value

_ENTER, _EXIT = torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast


def operand(emitter: Emitter, node: fx.Node, call: fx.Node) -> fx.Node:
    """``node`` as ``call``, a product or SDPA that reads it, computes with it."""
    return emitter.to_dtype(node, value(call).dtype)


class Regions:
    """To what autocast casts at each node of a graph.

    ``outer``: for a child graph, its parent's regions and the call there. Without, a graph begins in the
    state in which its backend is called, which Dynamo guards.
    """

    def __init__(self, nodes: Iterable[fx.Node], outer: tuple[Regions, fx.Node] | None = None) -> None:
        self._changes = [
            node for node in nodes if node.op == "call_function" and node.target in (_ENTER, _EXIT)
        ]
        self._outer = outer

    def dtype_at(self, node: fx.Node, device_type: str) -> torch.dtype | None:
        """The dtype that autocast casts tensors on ``device_type`` to; None where it is off."""
        enabled, dtype = self._state(node, device_type)
        return dtype if enabled else None

    def mask(self, emitter: Emitter, mask: fx.Node | None, call: fx.Node) -> fx.Node | None:
        """A mask as SDPA reads it: one that is added is cast, too, where autocast is on.

        Elsewhere SDPA takes float32 masks beside narrower operands, so the result's dtype does not tell.
        """
        if not is_tensor(mask) or not value(mask).dtype.is_floating_point:
            return mask
        dtype = self.dtype_at(call, value(call).device.type)
        return operand(emitter, mask, call) if dtype == value(call).dtype else mask

    def _state(self, node: fx.Node, device_type: str) -> tuple[bool, torch.dtype]:
        if self._outer is None:
            state = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
        else:
            parent, call = self._outer
            state = parent._state(call, device_type)
        before: dict[Any, tuple[bool, torch.dtype]] = {}
        for change in self._changes:
            if not change < node:
                break
            if change.target is _ENTER:
                before[change] = state
                arguments: tuple[Any, ...] = change.args
                device, dtype, enabled = arguments[:3]
                if device == device_type:
                    state = bool(enabled), dtype or state[1]
            else:
                state = before[change.args[0]]
        return state
