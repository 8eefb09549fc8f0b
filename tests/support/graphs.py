"""A backend for tests of the passes: it runs the pipeline and then the graph as it is, and keeps both
graphs."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field

import torch
from support.models import LOSSLESS
from torch import fx

from sa_compile.config import SampleAttentionConfig
from sa_compile.masks_seen import MasksSeen
from sa_compile.passes import pipeline
from sa_compile.passes.graph.operations import label
from sa_compile.passes.rewrite.score_tensors import score_shaped_nodes
from sa_compile.passes.site_record import SiteRecord

SAMPLED_OPS = {
    **{"block_representatives": 1, "select_peaks": 1, "select_budget_rest": 1},
    "block_rest_attention": 1,
}
BLOCK_SPARSE_OPS = {"mask_blocks": 1, "block_sparse_attention": 1}
SDPA_OPS = {"scaled_dot_product_attention": 1}
_ATTENTION_OPS = (
    *("sample_scores", "select_blocks", "block_representatives", "select_adaptive", "select_budget"),
    *("mask_blocks", "block_sparse_attention", "block_mean_attention", "block_rest_attention"),
    *("select_budget_rest", "select_peaks"),
    *("scaled_dot_product_attention", "softmax", "matmul", "bmm", "einsum"),
)


@dataclass
class PassesBackend:
    """``torch.compile(f, backend=PassesBackend())``; options as of the backend, every block kept by
    default."""

    options: dict = field(default_factory=dict)
    before: list[fx.GraphModule] = field(default_factory=list)
    after: list[fx.GraphModule] = field(default_factory=list)
    records: list[SiteRecord] = field(default_factory=list)
    masks: MasksSeen = field(default_factory=MasksSeen)  # of the last graph

    def __call__(self, gm, example_inputs):
        self.before.append(copy.deepcopy(gm))
        before = len(self.records)
        self.records += pipeline.run(gm, SampleAttentionConfig(**{**LOSSLESS, **self.options}))
        self.after.append(gm)
        self.masks = MasksSeen(self.records[before:])
        return self.masks.wrap(gm.forward)

    def ops(self, graph=-1):
        """How often each op of attention is in the rewritten graph (children included)."""
        return _count(self.after[graph])

    def ops_before(self, graph=-1):
        """The same for the graph as captured."""
        return _count(self.before[graph])

    @property
    def outcomes(self):
        """Outcome and form of each site."""
        return [(record.outcome, record.form) for record in self.records]

    def score_shaped(self):
        """Tensors of the size of the scores that rewritten graphs still hold."""
        return [node for gm in self.after for node in score_shaped_nodes(gm, self.records)]


def operation_name(node):
    """The operation that a node is, without its namespace; "" for placeholders and the output."""
    return label(node).rpartition("::")[2] if node.op in ("call_function", "call_method") else ""


def _count(gm):
    nodes = (n for m in gm.modules() if isinstance(m, fx.GraphModule) for n in m.graph.nodes)
    return dict(Counter(name for name in map(operation_name, nodes) if name in _ATTENTION_OPS))


def compile_with_passes(function, *args, dynamic=None, training=False, tolerance=1e-5, **options):
    """Compile, compare with the uncompiled function, and return the backend with what it saw."""
    torch._dynamo.reset()
    backend = PassesBackend(options)
    with torch.set_grad_enabled(training):
        expected = function(*args)
        actual = torch.compile(function, backend=backend, dynamic=dynamic)(*args)
    for one, other in zip(_tensors(actual), _tensors(expected), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        error = (one.float() - other.float()).norm() / other.float().norm().clamp(min=1e-20)
        assert error <= tolerance, f"relative error {error:.1e}"
    return backend


def assert_kept_as_it_was(function, args, reason):
    """The attention stays, with ``reason`` in its record, and the graph is the one that was captured."""
    backend = compile_with_passes(function, *args, tolerance=0.0)
    assert backend.outcomes == [("kept", "")]
    assert reason in backend.records[0].reason
    assert str(backend.after[0].graph) == str(backend.before[0].graph)


def _tensors(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)
