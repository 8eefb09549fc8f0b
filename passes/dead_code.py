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
from torch._ops import HigherOrderOperator

from .fx_utils import op_name
from .mask.mutation import written_arguments

# Results that share memory with their input, or may.
_VIEWS = frozenset(
    (
        *("view", "reshape", "transpose", "permute", "expand", "getitem", "squeeze", "unsqueeze", "narrow"),
        *(
            "select",
            "split",
            "chunk",
            "unbind",
            "flatten",
            "unflatten",
            "view_as",
            "expand_as",
            "broadcast_to",
        ),
        *("detach", "contiguous", "to", "type", "type_as", "float", "diagonal", "movedim", "swapaxes"),
        *("swapdims", "t", "getattr", "as_strided", "unfold"),
    )
)
_IMPURE = frozenset(
    (
        *("setitem", "dropout", "bernoulli", "rand", "randn", "randint", "rand_like", "randn_like"),
        *("multinomial", "normal", "item", "tolist", "_assert", "_check", "_assert_async"),
        *("_log_api_usage_once", "print"),
    )
)


def changes_in_place(node: fx.Node) -> bool:
    """The call writes into one of its arguments."""
    return bool(written_arguments(node))


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
    if node.op not in ("call_function", "call_method", "get_attr"):
        return False
    if changes_in_place(node):
        return _changes_only_its_own(node)
    return op_name(node) not in _IMPURE and not isinstance(node.target, HigherOrderOperator)


def _changes_only_its_own(node: fx.Node) -> bool:
    """The tensor that the call changes was made fresh for it, and nobody else reads it."""
    changed = node.args[0]
    if not isinstance(changed, fx.Node) or list(changed.users) != [node]:
        return False
    if changed.op not in ("call_function", "call_method"):
        return False
    if changes_in_place(changed):
        return _changes_only_its_own(changed)
    if op_name(changed) in ("view", "reshape", "expand", "transpose", "to", "float", "contiguous"):
        base = changed.args[0]
        return isinstance(base, fx.Node) and list(base.users) == [changed] and _is_fresh(base)
    return _is_fresh(changed)


def _is_fresh(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and op_name(node) not in _VIEWS
