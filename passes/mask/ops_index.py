"""Rules of indexing: getitem with slices, None, integers and index tensors; select, narrow; setitem."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from ..graph.nodes import tensor_of
from .element_arithmetic import cast
from .expression import FALSE, TRUE, Bool, Element
from .interpreter import Frame, GiveUp, Index, rule

_ZERO = sympy.Integer(0)


def _is_index_tensor(item: Any) -> bool:
    tensor = tensor_of(item)
    if tensor is not None and tensor.dtype in (torch.bool, torch.uint8):
        raise GiveUp("indexing with a mask")
    return tensor is not None


def _items(frame: Frame, key: Any, rank: int) -> list[Any]:
    """The parts of an index with the Ellipsis written out."""
    items = list(key) if isinstance(key, tuple | list) else [key]
    if any(isinstance(item, list | tuple | bool) for item in items):
        raise GiveUp("indexing with a list")
    used = sum(item is not None and item is not Ellipsis for item in items)
    missing = [slice(None)] * (rank - used)
    if sum(item is Ellipsis for item in items) > 1 or used > rank:
        raise GiveUp("more indices than dims")
    for position, item in enumerate(items):
        if item is Ellipsis:
            return [*items[:position], *missing, *items[position + 1 :]]
    return [*items, *missing]


def _from_front(frame: Frame, value: sympy.Expr, size: sympy.Expr) -> sympy.Expr:
    """An index with Python's meaning of negative numbers."""
    if frame.facts.never_negative(value):
        return value
    if frame.facts.never_positive(value + 1):
        return sympy.expand(value + size)
    raise GiveUp(f"index {value} may be negative or not")


def _first_and_step(frame: Frame, item: slice, size: sympy.Expr) -> tuple[sympy.Expr, int]:
    step = 1 if item.step is None else frame.integer(item.step)
    start = _ZERO if item.start is None else _from_front(frame, frame.size(item.start), size)
    if not (frame.facts.never_negative(start)):
        raise GiveUp(f"slice start {start} may lie before the tensor")
    return start, step


@rule("getitem")
def getitem(frame: Frame, index: Index) -> Element:
    """x[...]"""
    source = frame.tensor(0, "a")
    return frame.read(source, _source_index(frame, source, frame.arg(1, "b"), index))


def _source_index(frame: Frame, source: fx.Node, key: Any, index: Index) -> Index:
    """Where ``source`` is read for element ``index`` of ``source[key]``."""
    shape = frame.shape_of(source)
    items = _items(frame, key, len(shape))
    tensors = [position for position, item in enumerate(items) if _is_index_tensor(item)]
    advanced: Index = ()
    if tensors:
        rank = max(len(frame.shape_of(items[p])) for p in tensors)
        together = all(_is_index_tensor(i) or _is_integer(i) for i in items[tensors[0] : tensors[-1] + 1])
        scalars = any(frame.shape_of(items[p]) == () for p in tensors) and len(tensors) > 1
        if scalars or any(_is_integer(item) for item in items):
            raise GiveUp("integers and index tensors together")
        before = sum(not _is_index_tensor(item) for item in items[: tensors[0]]) if together else 0
        advanced = index[before : before + rank]
        index = index[:before] + index[before + rank :]
        broadcast = frame.shape[before : before + rank]
    result = []
    remaining = iter(index)
    dims = iter(shape)
    for item in items:
        if item is None:
            next(remaining)
            continue
        size = next(dims)
        if isinstance(item, slice):
            first, step = _first_and_step(frame, item, size)
            result.append(sympy.expand(first + step * next(remaining)))
        elif _is_index_tensor(item):
            place = frame.broadcast_index(frame.shape_of(item), broadcast, advanced)
            value = frame.read(item, place)
            if not isinstance(value, sympy.Expr):
                raise GiveUp("an index that is not an integer")
            result.append(_from_front(frame, value, size))
        else:
            result.append(_from_front(frame, frame.size(item), size))
    return tuple(result)


def _is_integer(item: Any) -> bool:
    return not (item is None or isinstance(item, slice) or _is_index_tensor(item))


@rule("select")
def select(frame: Frame, index: Index) -> Element:
    """One index of a dim."""
    source = frame.tensor()
    shape = frame.shape_of(source)
    dim = frame.dim(frame.arg(1, "dim"), len(shape))
    at = _from_front(frame, frame.size(frame.arg(2, "index")), shape[dim])
    return frame.read(source, (*index[:dim], at, *index[dim:]))


@rule("narrow", "slice")
def narrow(frame: Frame, index: Index) -> Element:
    """A range of a dim: narrow(dim, start, length), and ATen's slice(dim, start, end, step)."""
    source = frame.tensor()
    dim = frame.dim(frame.arg(1, "dim", 0), len(index))
    start = frame.arg(2, "start", 0)
    step = frame.arg(4, "step", 1)
    first, stride = _first_and_step(frame, slice(start, None, step), frame.shape_of(source)[dim])
    return frame.read(source, (*index[:dim], sympy.expand(first + stride * index[dim]), *index[dim + 1 :]))


@rule("index_select")
def index_select(frame: Frame, index: Index) -> Element:
    """Rows named by a 1-D index tensor."""
    source = frame.tensor()
    dim = frame.dim(frame.arg(1, "dim"), len(index))
    at = frame.read(frame.arg(2, "index"), (index[dim],))
    if not isinstance(at, sympy.Expr) or not frame.facts.never_negative(at):
        raise GiveUp("an index that may be negative")
    return frame.read(source, (*index[:dim], at, *index[dim + 1 :]))


@rule("setitem")
def setitem(frame: Frame, index: Index) -> Element:
    """The tensor after ``x[key] = value``, for keys of slices with step 1, integers and Ellipsis."""
    source, key, value = frame.tensor(0, "a"), frame.arg(1, "b"), frame.arg(2, "c")
    shape = frame.shape_of(source)
    inside: list[Bool] = []
    region, region_index = [], []
    for item, size, i in zip(_items(frame, key, len(shape)), shape, index, strict=True):
        if not isinstance(item, slice):
            if item is None or _is_index_tensor(item):
                raise GiveUp("assignment through None or index tensors")
            at = _from_front(frame, frame.size(item), size)
            inside.append(frame.facts.equals_zero(i - at))
            continue
        first, step = _first_and_step(frame, item, size)
        if step != 1:
            raise GiveUp("assignment to a slice with a step")
        last = size if item.stop is None else _from_front(frame, frame.size(item.stop), size)
        if not frame.facts.never_positive(last - size):
            last = size if frame.facts.never_positive(size - last) else None
        if last is None:
            raise GiveUp("assignment to a slice that may end after the tensor")
        inside.append(frame.less_equal(first, i))
        inside.append(frame.less_equal(i + 1, last))
        region.append(sympy.expand(last - first))
        region_index.append(sympy.expand(i - first))
    within = frame.all_of(inside)
    old = frame.read(source, index) if within != TRUE else None
    if within == FALSE:
        return old  # type: ignore[return-value]
    place = frame.broadcast_index(frame.shape_of(value), tuple(region), tuple(region_index))
    new = cast(frame.read(value, place), frame.dtype_of(value), frame.dtype, frame.facts)
    return new if old is None else frame.select(within, new, old)


@rule("copy_", "copy")
def copy(frame: Frame, index: Index) -> Element:
    """The tensor after ``x.copy_(value)``."""
    value = frame.arg(1, "src", frame.node.kwargs.get("other"))
    return cast(frame.broadcast(value, index), frame.dtype_of(value), frame.dtype, frame.facts)
