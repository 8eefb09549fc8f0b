"""Rules of views: the element is an element of the argument, at other indices."""

from __future__ import annotations

import sympy

from .expression import Element
from .interpreter import Frame, GiveUp, Index, rule

_ZERO = sympy.Integer(0)


@rule(
    "contiguous",
    "clone",
    "detach",
    "data",
    "cpu",
    "cuda",
    "alias",
    "requires_grad_",
    "positive",
    "lift_fresh_copy",
)
def same(frame: Frame, index: Index) -> Element:
    """The same tensor, perhaps at another place."""
    return frame.read(frame.tensor(), index)


@rule("expand", "expand_as", "broadcast_to")
def expand(frame: Frame, index: Index) -> Element:
    """Dims of size 1 repeated, new dims in front."""
    return frame.broadcast(frame.tensor(), index)


@rule("repeat", "tile")
def repeat(frame: Frame, index: Index) -> Element:
    """Repeats of dims of size 1 (repeats of others would need a modulus)."""
    return frame.broadcast(frame.tensor(), index)


@rule("unsqueeze")
def unsqueeze(frame: Frame, index: Index) -> Element:
    """A new dim of size 1."""
    dim = frame.dim(frame.arg(1, "dim"), len(index))
    return frame.read(frame.tensor(), index[:dim] + index[dim + 1 :])


@rule("squeeze")
def squeeze(frame: Frame, index: Index) -> Element:
    """Dims of size 1 removed: all, or those named."""
    return _between_ones(frame, index)


@rule("view", "reshape", "view_as", "reshape_as", "_unsafe_view", "flatten", "unflatten")
def view(frame: Frame, index: Index) -> Element:
    """Views that only add and remove dims of size 1."""
    if len(frame.node.args) > 1 and frame.dtype != frame.dtype_of(frame.tensor()):
        raise GiveUp("a view as another dtype")
    return _between_ones(frame, index)


def _between_ones(frame: Frame, index: Index) -> Element:
    source = frame.tensor()
    shape = frame.shape_of(source)
    if len(shape) == len(frame.shape) and all(map(frame.facts.equal, shape, frame.shape)):
        return frame.read(source, index)
    rest = [(size, i) for size, i in zip(frame.shape, index, strict=True) if size != 1]
    wanted = [size for size in shape if size != 1]
    if len(rest) != len(wanted) or not all(
        frame.facts.equal(a, b[0]) for a, b in zip(wanted, rest, strict=True)
    ):
        raise GiveUp("a view that splits or merges dims")
    found = iter(rest)
    return frame.read(source, tuple(_ZERO if size == 1 else next(found)[1] for size in shape))


@rule("permute")
def permute(frame: Frame, index: Index) -> Element:
    """Dims in another order."""
    order = [frame.dim(d, len(index)) for d in frame.sizes(1, "dims")]
    source = [_ZERO] * len(index)
    for position, dim in enumerate(order):
        source[dim] = index[position]
    return frame.read(frame.tensor(), tuple(source))


@rule("transpose", "swapaxes", "swapdims")
def transpose(frame: Frame, index: Index) -> Element:
    """Two dims exchanged."""
    a, b = (frame.dim(frame.arg(p, f"dim{p - 1}"), len(index)) for p in (1, 2))
    swapped = list(index)
    swapped[a], swapped[b] = index[b], index[a]
    return frame.read(frame.tensor(), tuple(swapped))


@rule("t", "T")
def reversed_dims(frame: Frame, index: Index) -> Element:
    """All dims in reverse order; ``t`` takes no more than two."""
    return frame.read(frame.tensor(), index[::-1])


@rule("mT", "mH", "adjoint", "H")
def last_two_exchanged(frame: Frame, index: Index) -> Element:
    """Every matrix transposed; conjugating changes no real number."""
    if frame.dtype.is_complex:
        raise GiveUp("complex numbers")
    return frame.read(frame.tensor(), (*index[:-2], index[-1], index[-2]))
