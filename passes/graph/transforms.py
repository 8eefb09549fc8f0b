"""Which nodes run inside a function transform: ``torch.func`` (vmap, grad, jvp, ...) or forward-mode AD.

There a tensor has a further dimension or tangents that its example value does not show, and example values of
new nodes can not be computed: the level that they belong to is gone. An attention inside stays as it was.
"""

from __future__ import annotations

from torch import fx

from .operations import function_of_torch

_BEGIN = {
    "_vmap_increment_nesting": "torch.func.vmap",
    "_grad_increment_nesting": "torch.func.grad",
    "_jvp_increment_nesting": "torch.func.jvp",
    "_func_increment_nesting": "torch.func.functionalize",
    "_enter_dual_level": "forward-mode AD",
}
_END = {name.replace("increment", "decrement").replace("enter", "exit") for name in _BEGIN}


def transforms(graph: fx.Graph, outer: str | None = None) -> dict[fx.Node, str]:
    """The innermost transform around each node that has one; ``outer``: the one around the whole graph."""
    levels = [] if outer is None else [outer]
    found = {}
    for node in graph.nodes:
        name = function_of_torch(node)
        if name in _BEGIN:
            levels.append(_BEGIN[name])
        elif name in _END:
            levels.pop()
        elif levels:
            found[node] = levels[-1]
    return found
