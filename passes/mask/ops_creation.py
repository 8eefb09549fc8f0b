"""Rules of tensors made from nothing: constants, aranges, triangles; and of what runs along an axis."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from ..graph.operations import calls, qualified_name
from .element_arithmetic import arithmetic, as_number, cast, integer_in_float
from .expression import FALSE, TRUE, Bool, Element, Truth, lift
from .interpreter import Frame, GiveUp, Index, rule


def constant(frame: Frame, value: Any) -> Element:
    """A scalar as an element of the result."""
    return cast(frame.read(value, ()), frame.dtype_of(value), frame.dtype, frame.facts)


@rule("ones", "new_ones", "ones_like")
def ones(frame: Frame, index: Index) -> Element:
    """1 everywhere."""
    return constant(frame, 1)


@rule("zeros", "new_zeros", "zeros_like", "zero_")
def zeros(frame: Frame, index: Index) -> Element:
    """0 everywhere."""
    return constant(frame, 0)


@rule("full", "full_like")
def full(frame: Frame, index: Index) -> Element:
    """One value everywhere."""
    return constant(frame, frame.arg(1, "fill_value"))


@rule("new_full")
def new_full(frame: Frame, index: Index) -> Element:
    """One value everywhere."""
    return constant(frame, frame.arg(2, "fill_value"))


@rule("fill_", "fill")
def fill(frame: Frame, index: Index) -> Element:
    """One value everywhere."""
    return constant(frame, frame.arg(1, "value"))


@rule("tensor", "scalar_tensor", "new_tensor", "_to_tensor")
def scalar(frame: Frame, index: Index) -> Element:
    """A tensor of one number."""
    value = frame.arg(1 if calls(frame.node, "new_tensor") else 0, "data", frame.node.kwargs.get("s"))
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return constant(frame, value)


@rule("arange")
def arange(frame: Frame, index: Index) -> Element:
    """start + i * step"""
    numbers = [frame.node.kwargs.get(name) for name in ("start", "end", "step")]
    if len(frame.node.args) == 1:
        numbers[1] = frame.node.args[0]
    else:
        for position, value in enumerate(frame.node.args[:3]):
            numbers[position] = value
    start = frame.size(0 if numbers[0] is None else numbers[0])
    step = frame.size(1 if numbers[2] is None else numbers[2])
    value = sympy.expand(start + index[0] * step)
    if frame.dtype.is_floating_point:
        return integer_in_float(value, frame.dtype, frame.facts)
    return cast(value, torch.int64, frame.dtype, frame.facts)


def _triangle(frame: Frame, index: Index, lower: bool) -> Element:
    source = frame.tensor()
    diagonal = frame.size(frame.arg(1, "diagonal", 0))
    row, column = index[-2:]
    kept: Bool = (
        frame.less_equal(column, row + diagonal) if lower else frame.less_equal(row + diagonal, column)
    )
    return frame.select(kept, frame.read(source, index), constant(frame, 0))


@rule("tril", "tril_")
def tril(frame: Frame, index: Index) -> Element:
    """0 above the diagonal."""
    return _triangle(frame, index, lower=True)


@rule("triu", "triu_")
def triu(frame: Frame, index: Index) -> Element:
    """0 below the diagonal."""
    return _triangle(frame, index, lower=False)


@rule("cumsum")
def cumsum(frame: Frame, index: Index) -> Element:
    """The running sum of a sequence whose elements are all the same."""
    source = frame.tensor()
    if frame.dtype.is_floating_point:
        raise GiveUp("a running sum of floats")
    dim = frame.dim(frame.arg(1, "dim"), len(index))
    running = frame.interpreter.fresh_index(frame.shape_of(source)[dim])
    summand = as_number(frame.read(source, (*index[:dim], running, *index[dim + 1 :])), frame.dtype)
    if not (isinstance(summand, sympy.Expr) and summand.is_Integer):
        raise GiveUp("a running sum of elements that are not known when compiling")
    return cast(sympy.expand(summand * (index[dim] + 1)), torch.int64, frame.dtype, frame.facts)


@rule("diff")
def diff(frame: Frame, index: Index) -> Element:
    """First differences along a dim, perhaps with something put in front."""
    source, prepend = frame.tensor(), frame.node.kwargs.get("prepend")
    if frame.integer(frame.arg(1, "n", 1)) != 1 or frame.node.kwargs.get("append") is not None:
        raise GiveUp("differences of another order, or with something appended")
    if len(frame.node.args) > 3:
        raise GiveUp("differences with 'prepend' given by position")
    if frame.dtype == torch.bool:
        raise GiveUp("differences of truth values")
    dim = frame.dim(frame.arg(2, "dim", -1), len(index))
    parts = [source] if prepend is None else [prepend, source]
    later = _joined(frame, parts, index, dim, index[dim] + 1)
    earlier = _joined(frame, parts, index, dim, index[dim])
    return lift(lambda a, b: arithmetic("sub", a, b, frame.dtype, frame.facts), later, earlier)


@rule("cat", "concat", "concatenate")
def cat(frame: Frame, index: Index) -> Element:
    """Tensors one after the other; caches put an empty 1-D tensor in front, which counts for nothing."""
    tensors = frame.arg(0, "tensors")
    if not isinstance(tensors, list | tuple):
        raise GiveUp("cat of something that is not a list")
    parts = [t for t in tensors if frame.shape_of(t) != (0,) or len(index) == 1]
    dim = frame.dim(frame.arg(1, "dim", frame.node.kwargs.get("axis", 0)), len(index))
    return _joined(frame, parts, index, dim, index[dim])


def _joined(frame: Frame, parts: list[Any], index: Index, dim: int, at: sympy.Expr) -> Element:
    """Element ``at`` along ``dim`` of the parts put one after the other."""
    size = frame.shape_of(parts[0])[dim]
    inside = frame.less_equal(at + 1, size) if len(parts) > 1 else TRUE

    def first() -> Element:
        element = frame.read(parts[0], (*index[:dim], sympy.expand(at), *index[dim + 1 :]))
        return cast(element, frame.dtype_of(parts[0]), frame.dtype, frame.facts)

    if inside == TRUE:
        return first()
    other = _joined(frame, parts[1:], index, dim, at - size)
    return other if inside == FALSE else frame.select(inside, first(), other)


@rule("pad", "constant_pad_nd")
def pad(frame: Frame, index: Index) -> Element:
    """A constant around the tensor; negative widths cut."""
    source = frame.tensor()
    is_aten = qualified_name(frame.node.target) or calls(frame.node, "constant_pad_nd")
    if not is_aten and frame.arg(2, "mode", "constant") != "constant":
        raise GiveUp("padding that is not by a constant")
    value = frame.arg(2 if is_aten else 3, "value", None)
    widths = [frame.size(w) for w in frame.arg(1, "pad")]
    shape = frame.shape_of(source)
    inside: list[Bool] = []
    moved = list(index)
    for axis in range(len(widths) // 2):
        dim = len(index) - 1 - axis
        moved[dim] = sympy.expand(index[dim] - widths[2 * axis])
        inside.append(frame.less_equal(-moved[dim], sympy.Integer(0)))
        inside.append(frame.less_equal(moved[dim] + 1, shape[dim]))
    within = frame.all_of(inside)
    outside = constant(frame, 0 if value is None else value)
    if isinstance(within, Truth):
        return frame.read(source, tuple(moved)) if within.value else outside
    return frame.select(within, frame.read(source, tuple(moved)), outside)
