"""From the softmax back to the product of query and key: what scales the scores and what masks them.

::

    %scores = torch.matmul(%query, %key_t)
    %scaled = %scores * 0.25                   # scale 0.25
    %masked = %scaled + %mask                  # a mask that is added
    %upcast = %masked.float()
    %weights = torch.softmax(%upcast, -1)

Each step is undone in turn. A step that is none of these (tanh, cat, a second product) is an obstacle in
words.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..graph.emitter import Emitter
from ..graph.nodes import argument, has_plain_floats, is_tensor, number, rank, shape, value
from ..graph.operations import CASTS, RESHAPES, called, calls, label, operation
from ..graph.sizes import same_shape
from ..graph.writes import changes_in_place
from .matrix_products import Heads, is_product
from .sinks import Sinks, is_one_a_head, joined

_NOT_ELEMENTWISE = ("linear", "embedding", "layer_norm", "rms_norm", "softmax", "conv1d", "conv2d", "addmm")
_EXCLUDES = -1e9  # an entry filled with this or less has weight 0 beside any score of ordinary size


@dataclass
class Scores:
    """What lies between the product and the softmax."""

    product: fx.Node
    scale: float = 1.0
    tensor_scales: list[tuple[str, fx.Node]] = field(
        default_factory=list
    )  # ("mul" or "div", one-element tensor)
    masks: list[tuple[fx.Node, int]] = field(
        default_factory=list
    )  # added tensors, and the scores' rank there
    covered: list[fx.Node] = field(default_factory=list)
    heads: Heads | None = None
    sinks: Sinks | None = None  # concatenated to the scores
    shifted: bool = False  # by their maximum, the sinks' included
    mask_scaled: bool = False  # with the scores, after it was added
    floor: float | None = None  # scores and masks together are no less
    obstacle: str | None = None


class _Stuck(Exception):
    """A step that is not understood; the message says which, in words."""


def find_scores(softmax: fx.Node, captured: Container[fx.Node]) -> Scores | None:
    """What made the scores of this softmax; None if no product did. ``captured``: the graph's own nodes."""
    product = _product_behind(softmax.args[0]) if softmax.args else None
    if product is None:
        return None
    scores = Scores(product)
    walk = _Walk(scores, Emitter(softmax), captured)
    try:
        walk.run(softmax)
    except _Stuck as stuck:
        scores.obstacle = _named_obstacle(softmax, product) or str(stuck)
    return scores


class _Walk:
    def __init__(self, scores: Scores, emitter: Emitter, captured: Container[fx.Node]) -> None:
        self.scores = scores
        self.emitter = emitter
        self.captured = captured

    def run(self, softmax: fx.Node) -> None:
        reader, node = softmax, argument(softmax, 0, "input")
        while True:
            self._undo_writes(node, reader)
            self.scores.covered.append(node)
            if not has_plain_floats(node):
                raise _Stuck(f"scores of {value(node).dtype}")
            if is_product(node):
                self.scores.product = node
                self._undo_baddbmm(node)
                return
            reader, node = node, self._undo(node)

    def _undo_writes(self, node: fx.Node, reader: fx.Node) -> None:
        """In-place steps whose result is not read: ``scores.masked_fill_(...)`` and then
        ``softmax(scores)``."""
        same_memory, waiting, writes = {node}, [node], []
        while waiting:
            for user in waiting.pop().users:
                if self._writes_before(user, reader) and user.args[0] in same_memory:
                    same_memory.add(user)
                    waiting.append(user)
                    writes.append(user)
        for write in sorted(writes, reverse=True):
            self.scores.covered.append(write)
            if self._undo(write) not in same_memory:
                raise _Stuck(f"{label(write)} on the scores")

    def _writes_before(self, user: fx.Node, reader: fx.Node) -> bool:
        return user in self.captured and user < reader and changes_in_place(user)

    def _undo(self, node: fx.Node) -> fx.Node:
        """Note what the step does; the scores before it."""
        step = operation(node).removesuffix("_")
        if step in CASTS:
            return self._tensor(node)
        if step in RESHAPES:
            return self._undo_reshape(node)
        if step in ("mul", "imul", "multiply", "div", "truediv", "itruediv", "divide", "true_divide"):
            return self._undo_scale(node, "mul" if "mul" in step else "div")
        if step in ("add", "iadd"):
            return self._undo_add(node)
        if step in ("sub", "isub"):
            return self._undo_shift(node)
        if step == "masked_fill":
            kept, mask, fill = self._tensor(node), argument(node, 1, "mask"), argument(node, 2, "value")
            self._mask_by_fill(node, mask, fill, fill_where=True)
            return kept
        if step == "where" and len(node.args) == 3:
            return self._undo_where(node)
        if step in ("max", "maximum", "clamp", "clamp_min"):
            return self._undo_floor(node, step)
        if step in ("cat", "concat", "concatenate"):
            return self._undo_sinks(node)
        raise _Stuck(f"{label(node)} between the scores and softmax")

    def _tensor(self, node: fx.Node) -> fx.Node:
        source = argument(node, 0, "input")
        if not is_tensor(source):
            raise _Stuck(f"{label(node)} of something else than a tensor")
        return source

    def _undo_reshape(self, node: fx.Node) -> fx.Node:
        source = self._tensor(node)
        before, after = tuple(shape(source)), tuple(shape(node))
        if not same_shape(before[-2:], after[-2:]):
            raise _Stuck(f"{label(node)} mixes rows and keys of the scores")
        self._note_heads(before)
        self._note_heads(after)
        return source

    def _note_heads(self, sizes: tuple[Any, ...]) -> None:
        if len(sizes) == 4:
            self.scores.heads = self.scores.heads or (sizes[0], sizes[1])

    def _undo_scale(self, node: fx.Node, how: str) -> fx.Node:
        left, right = argument(node, 0, "input"), argument(node, 1, "other")
        if how == "mul" and not self._is_scores(left):
            left, right = right, left
        if not self._is_scores(left) or node.kwargs.get("rounding_mode"):
            raise _Stuck(f"{label(node)} between the scores and softmax")
        factor = constant(right)
        if factor is not None:
            self.scores.scale *= factor if how == "mul" else 1.0 / factor
        elif is_tensor(right) and value(right).numel() == 1 and rank(right) <= 4:
            self.scores.tensor_scales.append((how, right))
        else:
            raise _Stuck(f"the scores are scaled by the tensor {right}")
        return left

    def _undo_add(self, node: fx.Node) -> fx.Node:
        left, right = argument(node, 0, "input"), argument(node, 1, "other")
        if "alpha" in node.kwargs:
            raise _Stuck("add with alpha between the scores and softmax")
        if self._is_scores(left) and self._is_scores(right):
            raise _Stuck("a second product is added to the scores (relative positions)")
        if not self._is_scores(left):
            left, right = right, left
        if not is_tensor(right) or not self._is_scores(left):
            raise _Stuck(f"{right} is added to the scores")
        self._add_mask(right, left)
        return left

    def _undo_shift(self, node: fx.Node) -> fx.Node:
        """``scores - scores.amax(-1, keepdim=True)``, which softmax does not see."""
        scores, maximum = argument(node, 0, "input"), argument(node, 1, "other")
        while calls(maximum, "getitem", "getattr", "detach"):
            self.scores.covered.append(maximum)
            maximum = maximum.args[0]
        last = calls(maximum, "amax", "max") and argument(maximum, 1, "dim") in (-1, rank(node) - 1)
        if not last or maximum.args[0] is not scores or not argument(maximum, 2, "keepdim", False):
            raise _Stuck("sub between the scores and softmax")
        if self.scores.sinks is not None:
            raise _Stuck("attention sinks: the maximum is subtracted from the scores before these join them")
        self.scores.covered.append(maximum)
        self.scores.shifted = True
        return scores

    def _undo_sinks(self, node: fx.Node) -> fx.Node:
        """A logit a head, concatenated to the scores."""
        parts, behind = joined(node), self.scores
        if parts is None or not self._is_scores(parts[0]):
            raise _Stuck("cat between the scores and softmax")
        if behind.sinks is not None or rank(node) != 4:
            raise _Stuck("attention sinks: expected one column behind [B, H, Sq, Sk]")
        together = behind.masks or behind.tensor_scales or behind.floor is not None
        if together or behind.scale != 1.0 or behind.heads is not None:
            raise _Stuck("attention sinks: scaled, masked or reshaped together with the scores")
        scores, logits = parts
        if not is_one_a_head(logits, -3):
            raise _Stuck("attention sinks: not one a head, but of tokens or batch rows")
        behind.sinks = Sinks(logits, -3, node)
        return scores

    def _undo_where(self, node: fx.Node) -> fx.Node:
        condition, then, other = (
            argument(node, i, name) for i, name in enumerate(("condition", "input", "other"))
        )
        if self._is_scores(then):
            self._mask_by_fill(node, condition, other, fill_where=False)
            return then
        if self._is_scores(other):
            self._mask_by_fill(node, condition, then, fill_where=True)
            return other
        raise _Stuck("where between the scores and softmax")

    def _undo_floor(self, node: fx.Node, step: str) -> fx.Node:
        """``torch.max(scores, finfo.min)``: below it is only a mask of -inf, or the sum of two."""
        scores, low = self._tensor(node), argument(node, 1, "min" if "clamp" in step else "other")
        floor = constant(low) if "clamp" in step or is_tensor(low) else None
        behind = self.scores
        lowest = torch.finfo(value(node).dtype).min
        if floor is None or not floor <= lowest or argument(node, 2, "max") is not None:
            raise _Stuck(f"{label(node)} between the scores and softmax")
        if behind.masks or behind.tensor_scales or behind.scale != 1.0 or behind.floor is not None:
            raise _Stuck(f"{label(node)} before the scores are scaled or masked")
        behind.floor = None if math.isinf(floor) else lowest
        return scores

    def _undo_baddbmm(self, node: fx.Node) -> None:
        if not calls(node, "baddbmm"):
            return
        bias = argument(node, 0, "input")
        alpha, beta = number(node.kwargs.get("alpha", 1)), number(node.kwargs.get("beta", 1))
        if alpha is None or beta is None:
            raise _Stuck("baddbmm with alpha or beta not known at compile time")
        if beta != 0.0 and not _is_zeros(bias):
            scale = self.scores.scale
            self.scores.scale *= beta
            self._add_mask(bias, node)
            self.scores.scale = scale
        self.scores.scale *= alpha

    def _mask_by_fill(self, node: fx.Node, mask: Any, fill: Any, fill_where: bool) -> None:
        """Entries replaced by ``fill``: as a mask that is added, zero where the score stays."""
        low = constant(fill)
        dtype = value(node).dtype
        if low is None or not is_tensor(mask):
            raise _Stuck(f"{label(node)} with a value that is not known at compile time")
        if low > _EXCLUDES and low > torch.finfo(dtype).min:
            raise _Stuck(f"{label(node)} with {low}, which is not low enough to exclude a key")
        low = low if math.isinf(low) else torch.finfo(dtype).min
        zeros = self.emitter.function(torch.zeros, (), dtype=dtype, device=value(node).device)
        choices = (low, zeros) if fill_where else (zeros, low)
        self._add_mask(self.emitter.function(torch.where, mask, *choices), node)

    def _add_mask(self, mask: fx.Node, scores: fx.Node) -> None:
        if value(mask).dtype == torch.bool:
            raise _Stuck("a bool mask is added to the scores, as ones and zeros")
        if self.scores.tensor_scales or not 0.0 < self.scores.scale <= 1.0:
            raise _Stuck("the mask is scaled together with the scores")
        self.scores.masks.append((mask, rank(scores)))
        self.scores.mask_scaled |= self.scores.scale != 1.0

    def _is_scores(self, node: Any) -> bool:
        return is_tensor(node) and rank(node) >= 2 and _product_behind(node) is not None


def constant(argument_: Any) -> float | None:
    """A number, or the number that a one-element tensor was made from; None if unknown."""
    known = number(argument_)
    if known is not None or not isinstance(argument_, fx.Node):
        return known
    if calls(argument_, "to", "expand", "view", "type", "float"):
        return constant(argument_.args[0]) if value(argument_).numel() == 1 else None
    if calls(argument_, "tensor", "scalar_tensor") and value(argument_).dim() == 0:
        return number(argument_.args[0])
    if calls(argument_, "full") and value(argument_).dim() == 0:
        return number(argument(argument_, 1, "fill_value"))
    return None


def _is_zeros(node: Any) -> bool:
    while calls(node, "expand", "view", "reshape", "to"):
        node = node.args[0]
    return calls(node, "zeros", "zeros_like", "new_zeros")


def _product_behind(node: Any, depth: int = 10) -> fx.Node | None:
    """The nearest product that a tensor was computed from, through elementwise steps and views."""
    level: list[fx.Node] = [node] if is_tensor(node) else []
    seen: set[fx.Node] = set()
    for _ in range(depth):
        for candidate in level:
            if is_product(candidate):
                return candidate
        seen.update(level)
        level = [
            source
            for candidate in level
            if candidate.op in ("call_function", "call_method") and called(candidate) not in _NOT_ELEMENTWISE
            for source in candidate.all_input_nodes
            if source not in seen and is_tensor(source) and rank(source) >= 2
        ]
    return None


def _named_obstacle(softmax: fx.Node, product: fx.Node) -> str | None:
    """The well-known reasons, by what lies between the product and the softmax."""
    names = {operation(node) for node in _between(softmax, product)}
    if "tanh" in names:
        return "tanh softcap"
    return None


def _between(reader: fx.Node, source: fx.Node) -> list[fx.Node]:
    """Nodes on paths from ``source`` to ``reader``, to a depth of 12."""
    found: dict[fx.Node, bool] = {}

    def reaches(node: fx.Node, depth: int) -> bool:
        if node is source:
            return True
        if depth == 0 or node.op not in ("call_function", "call_method"):
            return False
        if node not in found:
            found[node] = False
            found[node] = sum(reaches(x, depth - 1) for x in node.all_input_nodes) > 0
        return found[node]

    reaches(reader, 12)
    return [node for node, on_path in found.items() if on_path]
