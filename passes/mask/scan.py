"""One walk over a graph as Dynamo captured it, for all the attentions in it.

A model of 40 layers has 40 attentions in one graph of thousands of nodes: what is asked of the whole graph is
asked once, and what was read of a mask is kept for the other layers that read the same mask.
"""

from __future__ import annotations

from torch import fx

from ..autocast import Regions
from ..transforms import transforms
from .facts import Facts, find_shape_env, size_expression
from .interpreter import Interpreter
from .mutation import Mutations, tensor_of


class GraphScan:
    """What one walk over a graph found, before any pass changed it.

    ``captured``: its nodes; nodes that passes added are not among them. ``mutations``: its in-place
    operations, which no pass adds to. ``autocast``: its regions. ``transforms``: the function transform
    around a node, of those that have one. ``called_from``: of a child graph, its parent's scan and the call
    there; ``inside``: what else stands around the whole graph, in words.
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
        self._shape_env = find_shape_env(gm)
        self._interpreters: dict[object, Interpreter] = {}

    def interpreter(self, mask: fx.Node | None, query: fx.Node, key: fx.Node) -> Interpreter:
        """The interpreter of a mask for scores of these operands' sizes; layers that share both share it.

        A guard added since may have made more of the sizes known: then it is a new one.
        """
        sizes = tuple(_sizes(operand) for operand in (query, key))
        env = self._shape_env
        known = (len(env.guards), len(env.replacements)) if env is not None else ()
        found = (mask, sizes, known)
        if found not in self._interpreters:
            self._interpreters[found] = Interpreter(self.mutations, Facts(env))
        return self._interpreters[found]


def _sizes(node: fx.Node) -> tuple[object, ...]:
    tensor = tensor_of(node)
    return () if tensor is None else tuple(map(size_expression, tensor.shape))
