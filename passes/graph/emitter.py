"""Adds nodes to a graph, with their metadata."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from .nodes import fake_mode, value

Example = Callable[[Any, tuple[Any, ...], Callable[[], Any]], Any]


class Emitter:
    """Adds nodes in front of an anchor; each gets its ``example_value`` and the anchor's origin.

    ``example(target, args, run)``: the value of a call, which ``run`` computes; None: always compute it.
    """

    def __init__(self, anchor: fx.Node, example: Example | None = None) -> None:
        self.graph = anchor.graph
        self.anchor = anchor
        self.mode = fake_mode(anchor)
        self.example = example or (lambda target, args, run: run())

    def function(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """``target(*args, **kwargs)``."""
        return self._add("call_function", target, args, kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """``args[0].name(*args[1:], **kwargs)``."""
        return self._add("call_method", name, args, kwargs)

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """One output of a call with several."""
        return self.function(operator.getitem, node, index)

    def permute(self, node: fx.Node, order: tuple[int, ...]) -> fx.Node:
        """``node.permute(order)``, or the node itself if the order is the identity."""
        if order == tuple(range(len(order))):
            return node
        return self.method("permute", node, *order)

    def to_dtype(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        """``node.to(dtype)``, or the node itself if it has that dtype."""
        return node if value(node).dtype == dtype else self.method("to", node, dtype)

    def _add(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        with self.graph.inserting_before(self.anchor):
            node = self.graph.create_node(op, target, args, kwargs)
        for key in ("nn_module_stack", "source_fn_stack", "stack_trace"):
            if key in self.anchor.meta:
                node.meta[key] = self.anchor.meta[key]
        node.meta["example_value"] = (
            self._run(op, target, args, kwargs)
            if kwargs
            else self.example(target, args, lambda: self._run(op, target, args, {}))
        )
        return node

    def _run(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = fx.node.map_arg((args, kwargs), value)
        anchor_value = value(self.anchor)
        grad = isinstance(anchor_value, torch.Tensor) and anchor_value.requires_grad
        with self.mode, enable_python_dispatcher(), torch.set_grad_enabled(grad):
            if op == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)
