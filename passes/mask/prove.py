"""From an attention site to what its mask means: the only door to the proofs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import sympy
from sympy.core.function import AppliedUndef
from torch import fx

from ..graph.nodes import is_tensor, shape, tensor_of
from ..graph.operations import describe
from ..graph.scan import GraphScan
from ..graph.sizes import as_expr
from ..site import AttentionSite
from . import ops_arith, ops_creation, ops_index, ops_views  # noqa: F401  (they register the rules)
from .additive import AdditiveMask, IsBias
from .clauses import TooComplex
from .expression import Bool, Element, Real, conjunction, expressions
from .facts import Facts
from .interpreter import Frame, GiveUp, Interpreter, Stop
from .materialise import Materialiser, NotEmittable
from .normal_form import Axes, DoesNotFit, to_predicate
from .predicate import MaskPredicate, NotProven


def prove_mask(site: AttentionSite, scan: GraphScan) -> MaskPredicate | NotProven:
    """What the site's mask allows, for all values of inputs and shape symbols; no guards are added.

    Integer arithmetic is taken to be free of overflow in int32 and int64. Parts of the predicate that have no
    node in the graph (a comparison of an opaque tensor, a slice) get one, [B, Sk] in size, before
    ``site.output``; without a user it is dead code. Source: DESIGN section 3.
    """
    return _Proof(site, scan).run()


class _Proof:
    def __init__(self, site: AttentionSite, scan: GraphScan):
        self.site = site
        self.interpreter = _interpreter(site, scan)
        self._materialiser: Materialiser | None = None

    def run(self) -> MaskPredicate | NotProven:
        """Prove, or say what stands in the way."""
        try:
            return self._predicate()
        except Stop as error:
            return error.result
        except GiveUp as error:
            return NotProven(str(error), self.site.mask or self.site.query)
        except TooComplex as error:
            return NotProven(str(error), self.site.mask)
        except NotEmittable as error:
            return NotProven(str(error), error.node or self.site.mask)
        except IsBias as error:
            return self._bias(error.entry)
        except DoesNotFit as error:
            return self._does_not_fit(error)

    def _predicate(self) -> MaskPredicate:
        axes = self._axes()
        terms: list[Bool] = []
        if self.site.is_causal:
            terms.append(self.interpreter.facts.less_equal_zero(axes.key - axes.query))
        masked_values = {"-inf"}
        if self.site.mask is not None:
            allowed, masked_values = self._allowed(self.site.mask, axes)
            terms.append(allowed)
        predicate = to_predicate(conjunction(terms), axes, self.interpreter, self._get_materialiser)
        if not predicate.may_have_empty_rows or masked_values <= {"-inf"}:
            return predicate
        if len(masked_values) > 1 or self.site.is_causal:
            raise DoesNotFit("masked entries hold both -inf and finfo.min, which differ in rows without keys")
        return replace(predicate, masked_value="finfo.min")

    def _axes(self) -> Axes:
        query, key = self.interpreter.shape(self.site.query), self.interpreter.shape(self.site.key)
        if len(query) != 4 or len(key) != 4:
            raise GiveUp(self.site.obstacle or "query and key are not [B, H, S, D]")
        batch, heads, q_len, _ = query
        kv_len = key[2]
        index = self.interpreter.facts.index
        # Without a row or a key there is no entry of the mask to say anything about.
        self.interpreter.facts.given = [size - 1 for size in (batch, q_len, kv_len)]
        return Axes(
            index("b", batch), index("h", heads), index("q", q_len), index("k", kv_len), q_len, kv_len
        )

    def _allowed(self, mask: fx.Node, axes: Axes) -> tuple[Bool, set[str]]:
        """Where the mask allows, and in which ways it masks."""
        reader = next((n for n in self.site.covered if mask in n.all_input_nodes), self.site.output)
        facts = self.interpreter.facts
        scores = (facts.last[axes.batch] + 1, facts.last[axes.head] + 1, axes.q_len, axes.kv_len)
        at = (axes.batch, axes.head, axes.query, axes.key)
        index = Frame(self.interpreter, mask).broadcast_index(self.interpreter.shape(mask), scores, at)
        element = self.interpreter.element(mask, index, reader)
        if isinstance(element, Bool):
            return element, {"-inf"}
        tensor = tensor_of(mask)
        assert tensor is not None
        if not tensor.dtype.is_floating_point:
            raise GiveUp(f"a mask of dtype {tensor.dtype}")
        additive = AdditiveMask(tensor.dtype)
        return additive.allowed(element), additive.masked_values

    def _get_materialiser(self) -> Materialiser:
        if self._materialiser is None:
            operands = (self.site.query, self.site.key, self.site.value)
            self._materialiser = Materialiser(self.interpreter, self.site.output, operands)
        return self._materialiser

    def _bias(self, entry: Element) -> NotProven:
        if isinstance(entry, Real):
            dtype = tensor_of(self.site.mask).dtype  # type: ignore[union-attr]
            return NotProven(
                f"bias: entries of {entry.value:g} are neither 0 nor finfo.min of {dtype}", self.site.mask
            )
        return self._unknown_values("bias: the values that the mask adds are not known when compiling", entry)

    def _does_not_fit(self, error: DoesNotFit) -> NotProven:
        if error.part is None:
            return NotProven(str(error), self.site.mask, refuted=True)
        return self._unknown_values(str(error), error.part)

    def _unknown_values(self, reason: str, element: Element) -> NotProven:
        """A reason and the node at which knowledge ends."""
        lookups = [a for expr in expressions(element) for a in expr.atoms(AppliedUndef)]
        if not lookups:
            return NotProven(reason, self.site.mask, refuted=True)
        node = self._origin(self._last(lookups))
        if node.op == "placeholder" and self._is_mask_input(node):
            return NotProven("the mask is an input of the graph", node)
        return NotProven(f"{reason}: {self._cause(node)}", node)

    def _last(self, lookups: list[sympy.Expr]) -> fx.Node:
        return max(self.interpreter.nodes[lookup.func.__name__] for lookup in lookups)

    def _origin(self, node: fx.Node) -> fx.Node:
        """The first opaque node on the way to an opaque node; of a float, the first float (the bias)."""
        while True:
            before = [n for n in self._ancestors(node) if n in self.interpreter.cause]
            if _is_float(node):
                before = [n for n in before if _is_float(n)]
            if not before:
                return node
            node = before[0]

    def _ancestors(self, node: fx.Node) -> Iterator[fx.Node]:
        """Nodes that a node is made of, nearest first."""
        queue, seen = deque(node.all_input_nodes), {node}
        while queue:
            found = queue.popleft()
            if found not in seen:
                seen.add(found)
                yield found
                queue.extend(found.all_input_nodes)

    def _cause(self, node: fx.Node) -> str:
        cause = self.interpreter.cause.get(node, "opaque")
        return cause if node.op == "placeholder" or describe(node) in cause else f"{describe(node)}: {cause}"

    def _is_mask_input(self, node: fx.Node) -> bool:
        tensor = tensor_of(node)
        return tensor is not None and tensor.dim() >= 3


def _interpreter(site: AttentionSite, scan: GraphScan) -> Interpreter:
    """The interpreter of a mask for scores of these sizes; layers that share both share it.

    A guard added since may have made more of the sizes known: then it is a new one.
    """
    env = scan.shape_env
    sizes = tuple(tuple(map(as_expr, shape(x))) if is_tensor(x) else () for x in (site.query, site.key))
    known = (len(env.guards), len(env.replacements)) if env is not None else ()
    key = ("interpreter", site.mask, sizes, known)
    return scan.once(key, lambda: Interpreter(scan.mutations, Facts(env)))


def _is_float(node: fx.Node) -> bool:
    tensor = tensor_of(node)
    return tensor is not None and tensor.dtype.is_floating_point
