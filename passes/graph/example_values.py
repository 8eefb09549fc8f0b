"""Example values of calls that every layer repeats: the fake of an op runs once a graph, not once a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .nodes import value
from .sizes import as_expr


class KnownExamples:
    """What functional ops returned for arguments of these sizes, strides and dtypes.

    Nodes of equal calls share one example value: read its sizes, strides and dtype, not whose memory it is.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def get(self, target: Any, args: Any, run: Callable[[], Any]) -> Any:
        """The example value of ``target(*args)``, ``args`` as the graph holds them; ``run`` makes it."""
        if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
            return run()
        call = (target, *map(_described, args))
        if call not in self._known:
            self._known[call] = run()
        return self._known[call]


def _described(argument: Any) -> Any:
    held = value(argument) if isinstance(argument, fx.Node) else argument
    if isinstance(held, torch.Tensor):
        sizes = tuple(map(as_expr, (*held.shape, *held.stride())))
        return held.dtype, held.device, held.requires_grad, sizes
    return as_expr(held) if isinstance(held, torch.SymInt) else (type(held), held)
