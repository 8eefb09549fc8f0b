"""One walk over a graph as Dynamo captured it, for all the attentions in it.

A model of 40 layers has 40 attentions in one graph of thousands of nodes: what is asked of the whole graph is
asked once, and what a pass learnt for one attention is kept for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import fx

from .autocast import Regions
from .mutations import Mutations
from .sizes import find_shape_env
from .transforms import transforms


class GraphScan:
    """What one walk over a graph found, before any pass changed it.

    ``captured``: its nodes; nodes that passes added are not among them. ``mutations``: its in-place
    operations, which no pass adds to. ``autocast``: its regions. ``transforms``: the function transform
    around a node, of those that have one. ``shape_env``: of its symbolic sizes. ``called_from``: of a child
    graph, its parent's scan and the call there; ``inside``: what else stands around the graph, in words.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        called_from: tuple[GraphScan, fx.Node] | None = None,
        inside: str | None = None,
    ) -> None:
        self.gm = gm
        self.captured = dict.fromkeys(gm.graph.nodes)
        outer = (called_from[0].autocast, called_from[1]) if called_from is not None else None
        self.autocast: Regions = Regions(gm.graph.nodes, outer)
        around = called_from[0].transforms.get(called_from[1]) if called_from is not None else None
        self.transforms: dict[fx.Node, str] = transforms(gm.graph, inside or around)
        self.mutations = Mutations(gm.graph)
        self.shape_env = find_shape_env(gm)
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` made for ``key`` the first time that a pass asked for it."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
