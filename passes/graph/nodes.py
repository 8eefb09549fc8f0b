"""What a node of a Dynamo graph holds, and how its arguments are read."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def value(node: fx.Node) -> Any:
    """What Dynamo recorded for this node: a FakeTensor, a SymInt, a number, a tuple of them, or None."""
    return node.meta.get("example_value", node.meta.get("val"))


def held(argument: Any) -> Any:
    """What an argument stands for: the value of a node, anything else itself."""
    return value(argument) if isinstance(argument, fx.Node) else argument


def tensor_of(argument: Any) -> torch.Tensor | None:
    """The tensor that an argument holds, as metadata; None if it is no node of one."""
    found = value(argument) if isinstance(argument, fx.Node) else None
    return found if isinstance(found, torch.Tensor) else None


def is_tensor(node: Any) -> TypeGuard[fx.Node]:
    """The node holds one tensor."""
    return tensor_of(node) is not None


def has_plain_floats(node: fx.Node) -> bool:
    """Its dtype is one that attention is computed in: what goes through integers or eight bits is rounded."""
    return value(node).dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def shape(node: fx.Node) -> torch.Size:
    """Sizes of the tensor that this node holds."""
    return value(node).shape


def rank(node: fx.Node) -> int:
    """Number of dimensions of the tensor that this node holds."""
    return value(node).dim()


def number(argument: Any) -> float | None:
    """A number that is known at compile time; a symbolic one is fixed by a guard. None if it is not a
    number."""
    argument = held(argument)
    if isinstance(argument, bool) or not isinstance(argument, (int, float, torch.SymInt, torch.SymFloat)):
        return None
    return float(argument)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, whether it was given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


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
