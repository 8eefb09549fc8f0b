"""Child graph modules: what calls them, and what crosses the call.

``nested_compile_region`` leaves ``invoke_subgraph`` calls and activation checkpointing
``tag_activation_checkpoint`` calls of a child graph whose placeholders are the call's operands. A mask
built in the parent is proven there, for every call; what the predicate needs is handed over instead of the
mask. Bodies of other higher-order operators (cond, while_loop, ...) are left alone, but for the report.

Before::

    parent: %m = torch.ones(S, S).tril();  %out = invoke_subgraph(%subgraph_0, "subgraph_0", %q, %k, %v, %m)
    child:  q, k, v, m -> scaled_dot_product_attention(%q, %k, %v, attn_mask=%m)

After::

    parent: %out = invoke_subgraph(%subgraph_0, "subgraph_0", %q, %k, %v)
    child:  q, k, v -> scaled_dot_product_attention(%q, %k, %v, is_causal=True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import fx

from .graph.operations import is_higher_order
from .graph.regions import first_operand, region_of
from .graph.scan import GraphScan
from .graph.writes import changes_in_place
from .mask.predicate import Chunk, MaskPredicate, NotProven, Segments
from .site import AttentionSite

Prover = Callable[[AttentionSite, GraphScan], MaskPredicate | NotProven]


@dataclass(frozen=True)
class Child:
    """A child graph module and every call of it in its parent."""

    parent: GraphScan
    graph_module: fx.GraphModule
    calls: tuple[fx.Node, ...]

    @property
    def placeholders(self) -> list[fx.Node]:
        """The child's inputs, in the order of the calls' operands."""
        return list(self.graph_module.graph.find_nodes(op="placeholder"))

    def operand(self, call: fx.Node, placeholder: fx.Node) -> fx.Node | None:
        """What a call hands over for a placeholder; None for a constant."""
        operand = call.args[self._position(call, self.placeholders.index(placeholder))]
        return operand if isinstance(operand, fx.Node) else None

    def add_input(self, operands: Iterable[fx.Node], name: str) -> fx.Node:
        """A new placeholder behind the others, and its operand for each call, in order of ``calls``."""
        operands = list(operands)
        last = self.placeholders[-1]
        with self.graph_module.graph.inserting_after(last):
            placeholder = self.graph_module.graph.placeholder(name)
        placeholder.meta["example_value"] = operands[0].meta["example_value"]
        for call, operand in zip(self.calls, operands, strict=True):
            call.args = (*call.args, operand)
        return placeholder

    def drop_inputs(self, placeholders: Iterable[fx.Node]) -> list[fx.Node]:
        """Take placeholders that nobody reads away from the child and from its calls; returns their
        operands."""
        dropped = []
        for placeholder in placeholders:
            if placeholder.users:
                continue
            position = self.placeholders.index(placeholder)
            for call in self.calls:
                at = self._position(call, position)
                operand = call.args[at]
                if isinstance(operand, fx.Node):
                    dropped.append(operand)
                call.args = (*call.args[:at], *call.args[at + 1 :])
            self.graph_module.graph.erase_node(placeholder)
        return dropped

    def _position(self, call: fx.Node, of_input: int) -> int:
        first = first_operand(call)
        assert first is not None, f"{call} is no call of a child"
        return first + of_input


def children(scan: GraphScan) -> list[Child]:
    """Child graph modules whose calls are all understood, in order of their first call."""
    return [
        Child(scan, module, tuple(call for call, _ in calls))
        for module, calls in _regions(scan).items()
        if all(_operands_match(call, body, module) for call, body in calls)
    ]


def regions(scan: GraphScan) -> list[tuple[fx.GraphModule, fx.Node]]:
    """Every graph module that this graph calls, with the first call of it."""
    return [(module, calls[0][0]) for module, calls in _regions(scan).items() if not _is_backward(*calls[0])]


def _regions(scan: GraphScan) -> dict[fx.GraphModule, list[tuple[fx.Node, fx.Node]]]:
    """Graph modules that this graph reads: each with its calls, and the node that reads it for the call."""
    found: dict[fx.GraphModule, list[tuple[fx.Node, fx.Node]]] = {}
    for body in scan.gm.graph.find_nodes(op="get_attr"):
        module = region_of(body)
        if module is not None and body.users:
            found.setdefault(module, []).extend((call, body) for call in body.users)
    return found


def _is_backward(call: fx.Node, body: fx.Node) -> bool:
    """The body is the backward of a ``torch.autograd.Function``, whose attention is the forward's."""
    return is_higher_order(call, "autograd_function_apply") and call.args[0] is not body


def _operands_match(call: fx.Node, body: fx.Node, module: fx.GraphModule) -> bool:
    inputs, first = len(module.graph.find_nodes(op="placeholder")), first_operand(call)
    return first is not None and call.args[0] is body and len(call.args) - first == inputs


class MaskFromParent:
    """A child's mask, proven where its parent builds it.

    ``predicate`` is the proof for the first call, in nodes of the parent; ``hand_over`` makes it one in
    nodes of the child.
    """

    def __init__(self, child: Child, predicates: list[MaskPredicate]) -> None:
        self._child = child
        self._predicates = predicates
        self.predicate = predicates[0]

    def hand_over(self) -> MaskPredicate:
        """The predicate on placeholders of the child, new ones where needed."""
        first = self.predicate
        key_valid = self._input([p.key_valid for p in self._predicates], "key_valid")
        start = self._input([p.start for p in self._predicates], "start")
        segments = first.segments and Segments(
            query_id=self._needed([p.segments.query_id for p in self._predicates if p.segments], "query_id"),
            key_id=self._needed([p.segments.key_id for p in self._predicates if p.segments], "key_id"),
        )
        chunk = first.chunk and Chunk(
            size=first.chunk.size,
            left_pad=self._input([p.chunk.left_pad for p in self._predicates if p.chunk], "left_pad"),
        )
        return replace(first, key_valid=key_valid, segments=segments, chunk=chunk, start=start)

    def _input(self, operands: list[fx.Node | None], name: str) -> fx.Node | None:
        return None if operands[0] is None else self._needed([x for x in operands if x is not None], name)

    def _needed(self, operands: list[fx.Node], name: str) -> fx.Node:
        for placeholder in self._child.placeholders:
            passed = [self._child.operand(call, placeholder) for call in self._child.calls]
            if passed == operands:
                return placeholder
        return self._child.add_input(operands, name)


def prove_in_parent(site: AttentionSite, child: Child, prove: Prover) -> MaskFromParent | NotProven:
    """Prove a child's mask in its parent: the child's part of it is copied there, in front of each call.

    All calls must give the same predicate but for the tensors in it. The copies have no readers afterwards.
    """
    predicates = []
    for call in child.calls:
        mask = _copy_to_parent(site.mask, child, call) if site.mask is not None else None
        if isinstance(mask, NotProven):
            return mask
        predicate = prove(replace(site, output=call, mask=mask), child.parent)
        if isinstance(predicate, NotProven):
            return predicate
        predicates.append(predicate)
    if len({_without_nodes(predicate) for predicate in predicates}) > 1:
        return NotProven("the calls of this graph module have different masks", site.mask)
    return MaskFromParent(child, predicates)


def _without_nodes(predicate: MaskPredicate) -> tuple[object, ...]:
    chunk, segments = predicate.chunk, predicate.segments
    return (
        replace(predicate, key_valid=None, segments=None, chunk=None, start=None),
        predicate.key_valid is None,
        predicate.start is None,
        segments is None,
        chunk and (chunk.size, chunk.left_pad is None),
    )


def _copy_to_parent(mask: fx.Node, child: Child, call: fx.Node) -> fx.Node | NotProven:
    graph, copies = child.parent.gm.graph, dict[fx.Node, fx.Node]()
    for node in child.graph_module.graph.nodes:
        if node is not mask and not _leads_to(node, mask):
            continue
        if node.op == "placeholder":
            operand = child.operand(call, node)
            if operand is None:
                return NotProven("the mask depends on a constant operand of its graph module", node)
            copies[node] = operand
            continue
        if node.op == "get_attr" or changes_in_place(node):
            return NotProven("the mask is not a plain function of the graph module's inputs", node)
        with graph.inserting_before(call):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return copies[mask]


def _leads_to(node: fx.Node, target: fx.Node) -> bool:
    seen, waiting = set(), [target]
    while waiting:
        current = waiting.pop()
        if current is node:
            return True
        if current not in seen:
            seen.add(current)
            waiting.extend(current.all_input_nodes)
    return False
