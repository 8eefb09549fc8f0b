"""What the passes do grows with a graph's nodes, not with its nodes times its attentions."""

from unittest.mock import patch

import pytest
import torch
from support.graphs import PassesBackend
from support.models import tiny_llama
from torch import fx

from sa_compile.kernels import dispatch
from sa_compile.passes import pipeline
from sa_compile.passes.graph import mutations
from sa_compile.passes.mask import interpreter

TOKENS = 80


class Counts:
    """How often the passes walk over a graph, look at a node for writes, read a mask, run the op's fake."""

    def __init__(self):
        self.walks = self.write_checks = self.mask_elements = self.fakes = 0

    def __enter__(self):
        nodes = fx.Graph.nodes.fget
        self._patches = [
            patch.object(fx.Graph, "nodes", property(self._counted("walks", nodes))),
            self._count("write_checks", mutations, "written_arguments"),
            self._count("mask_elements", interpreter, "_apply"),
            self._count("fakes", dispatch.block_sparse_attention, "check"),
        ]
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, *error):
        for one in self._patches:
            one.stop()

    def _count(self, name, module, function):
        return patch.object(module, function, self._counted(name, getattr(module, function)))

    def _counted(self, name, function):
        def call(*args, **kwargs):
            setattr(self, name, getattr(self, name) + 1)
            return function(*args, **kwargs)

        return call


def passes_of(layers, implementation, padded, dynamic):
    """Run the passes on a model's graph; what they did, and the graph's number of nodes."""
    model = tiny_llama(num_hidden_layers=layers, attn_implementation=implementation)
    seen = {}

    class Counting(PassesBackend):
        def __call__(self, gm, example_inputs):
            seen["nodes"], seen["counts"] = len(gm.graph.nodes), Counts()
            run = pipeline.run

            def counted(*args):
                with seen["counts"]:
                    return run(*args)

            with patch.object(pipeline, "run", counted):
                return super().__call__(gm, example_inputs)

    mask = torch.ones(1, TOKENS, dtype=torch.long)
    mask[:, :7] = 0
    inputs = {"attention_mask": mask} if padded else {}
    backend = Counting()
    with torch.no_grad():
        compiled = torch.compile(model, backend=backend, dynamic=dynamic)
        compiled(torch.ones(1, TOKENS, dtype=torch.long), use_cache=False, **inputs)
    assert backend.outcomes == [("sampled", "sampled")] * layers
    return seen["counts"], seen["nodes"]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True], ids=["causal", "padded"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_more_layers_are_no_more_walks_over_the_graph(implementation, padded, dynamic):
    few, few_nodes = passes_of(2, implementation, padded, dynamic)
    many, many_nodes = passes_of(6, implementation, padded, dynamic)
    assert many.walks == few.walks
    assert few.write_checks <= 2 * few_nodes
    assert many.write_checks <= 2 * many_nodes
    assert many.fakes == few.fakes > 0


@pytest.mark.parametrize("padded", [False, True], ids=["causal", "padded"])
def test_layers_that_share_a_mask_share_its_reading(padded):
    few, _ = passes_of(3, "sdpa", padded, True)
    many, _ = passes_of(6, "sdpa", padded, True)
    assert many.mask_elements == few.mask_elements > 0
