"""What a node writes into: Dynamo's graphs are not functional.

Names or schemas say it of torch's own operations. A function that is not torch's is run once on fake tensors,
whose version counters tell; of the region that a higher-order operator calls, the nodes are read.
"""

from __future__ import annotations

import operator
import types
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode

from .nodes import fake_mode, is_tensor, value
from .operations import is_higher_order, is_torchs
from .regions import first_operand, region_of

_INPLACE_OPERATORS = {
    getattr(operator, "i" + name)
    for name in ("add", "and", "concat", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow", "rshift")
} | {operator.isub, operator.itruediv, operator.ixor, operator.setitem, operator.delitem}

_foreign: WeakKeyDictionary[fx.Node, list[fx.Node]] = WeakKeyDictionary()


def written_arguments(node: fx.Node) -> list[fx.Node]:
    """The argument nodes that this node writes into."""
    written: list[Any] = [node.kwargs.get("out")]
    if node.op == "call_method":
        if _is_inplace_method(str(node.target)):
            written.append(node.args[0])
    elif node.op == "call_function":
        written.extend(_written_by_function(node))
    flat: list[fx.Node] = []
    for held in written:
        flat.extend(v for v in (held if isinstance(held, list | tuple) else [held]) if isinstance(v, fx.Node))
    return flat


def changes_in_place(node: fx.Node) -> bool:
    """The call writes into one of its arguments."""
    return bool(written_arguments(node))


def storage(tensor: torch.Tensor) -> int | None:
    """The memory of a tensor, as a number to compare; None if it has none of its own."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def _is_inplace_method(name: str) -> bool:
    if name.startswith("__") and name.endswith("__"):
        return name == "__setitem__" or name.startswith("__i") and name not in ("__invert__", "__index__")
    return name.endswith("_")


def _written_by_function(node: fx.Node) -> list[Any]:
    target = node.target
    if isinstance(target, OpOverload):
        return _written_by_schema(node, target)
    if isinstance(target, OpOverloadPacket):  # which overload it will be is not known before the call
        overloads = [getattr(target, name) for name in target.overloads()]
        return [argument for overload in overloads for argument in _written_by_schema(node, overload)]
    if isinstance(target, HigherOrderOperator):
        return _written_by_region(node)
    if isinstance(target, types.BuiltinFunctionType) and target.__module__ == "_operator":
        return list(node.args[:1]) if target in _INPLACE_OPERATORS else []
    name = str(getattr(target, "__name__", ""))
    if (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace") is True:
        return [*node.args[:1], node.kwargs.get("input")]
    return [] if is_torchs(target) or not callable(target) else _written_by_foreign(node)


def _written_by_schema(node: fx.Node, overload: OpOverload) -> list[Any]:
    written = []
    for position, argument in enumerate(overload._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            by_position = not argument.kwarg_only and position < len(node.args)
            written.append(node.args[position] if by_position else node.kwargs.get(argument.name))
    return written


def _written_by_region(node: fx.Node) -> list[Any]:
    """Operands that a region writes into; all of them where it is not known which."""
    if is_higher_order(node, "triton_kernel_wrapper_mutation"):
        return list(node.all_input_nodes)
    written: list[Any] = []
    first = first_operand(node)
    for region in filter(None, map(region_of, node.all_input_nodes)):
        inputs = region.graph.find_nodes(op="placeholder")
        changed = [position for position, read in enumerate(inputs) if _is_written(read, region.graph)]
        if first is None or len(node.args) != first + len(inputs):
            written.extend(node.all_input_nodes if changed else ())
        else:
            written.extend(node.args[first + position] for position in changed)
    return written


def _is_written(placeholder: fx.Node, graph: fx.Graph) -> bool:
    if not is_tensor(placeholder):
        return False
    memory = storage(value(placeholder))
    written = (argument for node in graph.nodes for argument in written_arguments(node))
    return any(
        argument is placeholder or not is_tensor(argument) or storage(value(argument)) in (memory, None)
        for argument in written
    )


def _written_by_foreign(node: fx.Node) -> list[fx.Node]:
    if node not in _foreign:
        _foreign[node] = _written_when_run(node)
    return _foreign[node]


def _written_when_run(node: fx.Node) -> list[fx.Node]:
    """Tensors whose version a call changes; all of them if it does not run."""
    inputs = [source for source in node.all_input_nodes if is_tensor(source)]
    if not inputs:
        return []
    try:
        mode = fake_mode(node)
        with mode, enable_python_dispatcher(), torch.no_grad(), _no_new_symbols(mode):
            copies = {source: torch.empty_like(value(source)) for source in inputs}
            before = {source: copy._version for source, copy in copies.items()}
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda source: copies.get(source, value(source))
            )
            node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # whatever a function of someone else's may raise
        return inputs
    return [source for source, copy in copies.items() if copy._version != before[source]]


def _no_new_symbols(mode: FakeTensorMode) -> AbstractContextManager[Any]:
    """Sizes that depend on data leave no trace: the graph has a symbol for each already."""
    env = mode.shape_env
    return nullcontext() if env is None else env.ignore_fresh_unbacked_symbols()
