"""What a node does: the one identity of operations, which knows whose an operation is.

An operation has a name here only if it is torch's own, on plain tensors: whatever else is called "softmax" (a
custom op, a function that the graph calls as it is, a method of a tensor class with its own rules) has none.
One name stands for every spelling::

    torch.softmax(x, -1)   F.softmax(x, -1)   x.softmax(-1)   torch.ops.aten.softmax.int(x, -1)   # "softmax"
    x + 1   torch.add(x, 1)   x.add(1)   x.__add__(1)                                             # "add"
    x.mT   torch.ops.aten.mT(x)                                                                   # "mT"

The in-place underscore and ``operator``'s ``i`` stay: "add_", "iadd". Arguments differ between spellings.
"""

from __future__ import annotations

import _operator
import builtins
import types
from typing import Any, TypeGuard

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor

# Where torch and Python hold their functions that are not written in Python.
_TORCH_C = [getattr(torch._C, name) for name in ("_VariableFunctions", "_nn", "_special", "_linalg", "_fft")]
_BUILTIN = (*_TORCH_C, _operator, builtins)
# Modules whose functions, written in Python, are called by the names that users know.
_PYTHON = (torch, torch.functional, torch.nn.functional, torch._tensor)
# Neither has rules of its own for what an operation does to it.
_PLAIN = (torch.Tensor, torch.nn.Parameter, FakeTensor)
# ATen names attributes of a tensor otherwise than Python does.
_ATTRIBUTES = {"numpy_T": "T", "matrix_H": "H"}

# Operations that change nothing but the dtype or the strides, and those that change nothing but the sizes.
CASTS = ("to", "type", "float", "half", "bfloat16", "type_as", "contiguous", "clone")
RESHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")


def calls(node: Any, *names: str) -> TypeGuard[fx.Node]:
    """The node is one of these operations."""
    return isinstance(node, fx.Node) and operation(node) in names


def operation(node: fx.Node) -> str:
    """Name of the operation of torch that a node is, in-place underscore included; "" for everything else."""
    return called(node) if _on_plain_tensors(node) else ""


def called(node: fx.Node) -> str:
    """Name of the operation of torch that a node calls, whatever tensors it calls it on; "" if it calls none.

    A class of tensors may give the operation another meaning: only ``operation`` says what the node computes.
    """
    if node.op == "call_method":
        return _method(str(node.target))
    if node.op != "call_function":
        return ""
    if node.target is builtins.getattr:
        return _attribute(node)
    if node.target is getattr(torch._C._autograd, "_get_data_attr", None):
        return "data"
    return _function(node.target)


def is_higher_order(node: fx.Node, *operators: str) -> TypeGuard[fx.Node]:
    """The node calls one of torch's own higher-order operators, known by these names."""
    target = node.target
    if not isinstance(target, HigherOrderOperator) or target.name() not in operators:
        return False
    return type(target).__module__.startswith("torch.")


def qualified_name(target: Any) -> str:
    """Name of an operator with its namespace, as in "aten::softmax"; "" for what is no operator."""
    if isinstance(target, OpOverload):
        return target._schema.name
    return target._qualified_op_name if isinstance(target, OpOverloadPacket) else ""


def is_torchs(target: Any) -> bool:
    """A function that torch itself brings, known by a name here or not."""
    if isinstance(target, OpOverload | OpOverloadPacket):
        return bool(_function(target))
    if isinstance(target, types.FunctionType):
        module = target.__globals__.get("__name__")
    else:
        module = getattr(target, "__module__", "")
    return bool(_function(target)) or str(module).partition(".")[0] == "torch"


def function_of_torch(node: fx.Node) -> str:
    """Bare name of what a node calls if torch brings it, also of what is no operation; else ""."""
    own = node.op == "call_function" and is_torchs(node.target)
    return str(getattr(node.target, "__name__", "")) if own else ""


def is_foreign(node: fx.Node) -> bool:
    """The node calls something that torch does not bring, or calls it on tensors of a class of its own."""
    if node.op == "call_function":
        return not (is_torchs(node.target) and _on_plain_tensors(node))
    return node.op == "call_method" and not operation(node)


def describe(node: fx.Node) -> str:
    """What a node calls, in words, for reasons."""
    if node.op == "placeholder":
        return "an input of the graph"
    if node.op in ("call_method", "call_module", "get_attr"):
        return f"{node.op} '{node.target}'"
    return f"'{label(node)}'"


def label(node: fx.Node) -> str:
    """The operation's name if it is torch's; else what tells it from torch's, as in "mylib::softmax"."""
    target = node.target
    own_name = getattr(target, "__qualname__", getattr(target, "__name__", target))
    return operation(node) or qualified_name(target) or str(own_name)


def _function(target: Any) -> str:
    if isinstance(target, OpOverload | OpOverloadPacket):
        namespace, opname = qualified_name(target).split("::")
        return _ATTRIBUTES.get(opname, opname) if namespace == "aten" else ""
    if isinstance(target, types.BuiltinFunctionType):
        owned = any(getattr(owner, target.__name__, None) is target for owner in _BUILTIN)
        return target.__name__ if owned else ""
    if isinstance(target, types.FunctionType):
        # Where it was written, which a decorator or another name for it does not change.
        owned = any(target.__globals__ is module.__dict__ for module in _PYTHON)
        return _bare(target.__name__) if owned else ""
    return _bare(target.__name__) if _is_tensors(target) else ""


def _method(method: str) -> str:
    """The operation behind a method of plain tensors, which someone may have exchanged."""
    return _bare(method) if _is_tensors(getattr(torch.Tensor, method, None)) else ""


def _bare(method: str) -> str:
    return method[2:-2] if method.startswith("__") and method.endswith("__") else method


def _attribute(node: fx.Node) -> str:
    """Reading an attribute of a tensor is an operation of its own; of anything else, it is "getattr"."""
    owner, attribute = node.args[:2]
    if not isinstance(owner, fx.Node) or not isinstance(owner.meta.get("example_value"), torch.Tensor):
        return "getattr"
    return str(attribute) if _is_tensors(getattr(torch.Tensor, str(attribute), None)) else ""


def _is_tensors(member: Any) -> bool:
    """A method or an attribute that torch gave its tensors."""
    if isinstance(member, types.FunctionType):
        return member.__globals__ is torch._tensor.__dict__
    return getattr(member, "__objclass__", None) in (torch.Tensor, torch._C.TensorBase)


def _on_plain_tensors(node: fx.Node) -> bool:
    return _is_plain(node) and all(map(_is_plain, node.all_input_nodes))


def _is_plain(node: fx.Node) -> bool:
    held = node.meta.get("example_value", node.meta.get("val"))
    return not isinstance(held, torch.Tensor) or type(held) in _PLAIN
