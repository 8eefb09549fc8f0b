"""Small helpers on Dynamo graphs: what a node is, what it holds, and how to add one with its metadata."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def value(node: fx.Node) -> Any:
    """What Dynamo recorded for this node: a FakeTensor, a SymInt, a number, a tuple of them, or None."""
    return node.meta.get("example_value")


def is_tensor(node: Any) -> TypeGuard[fx.Node]:
    """The node holds one tensor."""
    return isinstance(node, fx.Node) and isinstance(value(node), torch.Tensor)


def shape(node: fx.Node) -> torch.Size:
    """Sizes of the tensor that this node holds."""
    return value(node).shape


def rank(node: fx.Node) -> int:
    """Number of dimensions of the tensor that this node holds."""
    return value(node).dim()


def number(argument: Any) -> float | None:
    """A number that is known at compile time; a symbolic one is fixed by a guard. None if it is not a
    number."""
    if isinstance(argument, fx.Node):
        argument = value(argument)
    if isinstance(argument, bool) or not isinstance(argument, (int, float, torch.SymInt, torch.SymFloat)):
        return None
    return float(argument)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, whether it was given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def same_size(a: Any, b: Any) -> bool:
    """Two sizes are known to be equal, without adding a guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(torch.fx.experimental.symbolic_shapes.statically_known_true(a == b))


def required_equal(a: Any, b: Any) -> bool:
    """Two sizes that must be equal for the captured call to work: a guard holds them so where symbols
    differ."""
    return bool(a == b)


def same_shape(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Two shapes are known to be equal, without adding a guard."""
    a, b = tuple(a), tuple(b)
    return len(a) == len(b) and all(map(same_size, a, b))


def fixed(size: Any) -> int:
    """A size that does not vary between calls (heads, head_dim) as an int; a guard fixes a symbolic one."""
    return int(size)


def normal_dim(dim: int, of_rank: int) -> int:
    """A dimension counted from the front."""
    return dim % of_rank


# What Dynamo calls the model, depending on the function that it traces: the model's forward, a decorator of
# it (transformers has several), one that takes the model, or Dynamo's own wrapper of a module of torch.nn.
_ROOTS = ("L['self']", "L['args'][0]", "L['model']", "L['fn']")


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that a node was traced in, as ``named_modules`` spells it; "" if
    unknown."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    for root in _ROOTS:
        path = path.removeprefix(root)
    path = path.replace("['", ".").replace("']", "")
    return path.replace("[", ".").replace("]", "").removeprefix("._orig_mod").strip(".")


def fake_mode(node: fx.Node) -> FakeTensorMode:
    """The mode under which a node's graph was traced.

    Raises ``ValueError`` if no node holds a FakeTensor: such a graph does not come from Dynamo.
    """
    if isinstance(value(node), FakeTensor):
        return value(node).fake_mode
    for other in node.graph.nodes:
        if isinstance(value(other), FakeTensor):
            return value(other).fake_mode
    raise ValueError("the graph has no node with a FakeTensor in meta['example_value']; Dynamo graphs have")


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
