"""Remove what a rewrite has left without readers, and nothing else.

``Graph.eliminate_dead_code`` looks at the whole graph and takes every method call for pure, in-place ones
included. A Dynamo graph is not functional, so only the cone behind the replaced nodes is looked at here,
and in-place calls stay unless the tensor they change was made for them.

Before::

    %ones = torch.ones(S, S)         # read by %tril only
    %tril = %ones.tril()             # read by the replaced attention only
    %cache = %keys.copy_(%k)         # in place: stays, though nobody reads it

After::

    %cache = %keys.copy_(%k)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from torch import fx

from ..graph.nodes import is_tensor, value
from ..graph.operations import operation
from ..graph.writes import changes_in_place, storage

_IMPURE = frozenset(
    (
        "",
        *("setitem", "dropout", "bernoulli", "rand", "randn", "randint", "rand_like", "randn_like"),
        *("multinomial", "normal", "item", "tolist", "_assert", "_check", "_assert_async"),
        *("_log_api_usage_once", "print"),
    )
)


def remove_unused(graph: fx.Graph, replaced: Iterable[fx.Node], candidates: Iterable[fx.Node]) -> None:
    """Erase ``replaced`` nodes and ``candidates`` that nobody reads, then what only they read, and so on.

    ``replaced``: parts of an attention that was rewritten, without effect but for its result.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    gone = {node for node in replaced if node in order}
    waiting = [(-order[node], node) for node in {*gone, *(node for node in candidates if node in order)}]
    heapq.heapify(waiting)  # readers before what they read
    while waiting:
        _, node = heapq.heappop(waiting)
        if node._erased:
            continue
        writes = [reader for reader in node.users if not reader.users and changes_in_place(reader)]
        if writes and len(writes) == len(node.users):
            for write in filter(_removable, writes):
                heapq.heappush(waiting, (-order[write], write))
        if node.users or not (node in gone or _removable(node)):
            continue
        inputs = node.all_input_nodes
        graph.erase_node(node)
        for source in inputs:
            heapq.heappush(waiting, (-order[source], source))


def _removable(node: fx.Node) -> bool:
    """Nothing but its result is lost with the node; of what is not torch's own that is not known."""
    if node.op == "get_attr":
        return True
    if changes_in_place(node):
        return bool(operation(node)) and _changes_only_its_own(node)
    return operation(node) not in _IMPURE


def _changes_only_its_own(node: fx.Node) -> bool:
    """The tensor that the call changes was made fresh for it, and nobody else reads it."""
    changed = node.args[0]
    if not isinstance(changed, fx.Node) or list(changed.users) != [node] or not operation(changed):
        return False
    if changes_in_place(changed):
        return _changes_only_its_own(changed)
    if _is_fresh(changed):
        return True
    base = changed.args[0] if changed.args else None
    return isinstance(base, fx.Node) and list(base.users) == [changed] and _is_fresh(base)


def _is_fresh(node: fx.Node) -> bool:
    """The node's memory is none of its arguments'."""
    if not operation(node) or not is_tensor(node):
        return False
    memory = storage(value(node))
    inputs = (storage(value(source)) for source in node.all_input_nodes if is_tensor(source))
    return memory is not None and memory not in inputs
