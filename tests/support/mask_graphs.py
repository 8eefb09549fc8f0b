"""Captures Dynamo graphs, proves their masks, runs them, and compares the predicates with the real masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from sa_compile.passes.graph.scan import GraphScan
from sa_compile.passes.mask.evaluate import evaluate
from sa_compile.passes.mask.predicate import MaskPredicate, NotProven
from sa_compile.passes.mask.prove import prove_mask
from sa_compile.passes.match import eager, sdpa
from sa_compile.passes.site import AttentionSite


@dataclass
class Captured:
    """One graph with its sites and proofs, and the values of the last run."""

    gm: fx.GraphModule
    sites: list[AttentionSite]
    proofs: list[MaskPredicate | NotProven]
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def __call__(self, *args: Any) -> Any:
        """Run the graph node by node and keep a copy of every value as it was when it was made."""
        recorder = _Recorder(self.gm, self)
        return recorder.run(*args)

    def symbols(self) -> dict[sympy.Symbol, int]:
        """The values of the shape symbols in the last run."""
        found: dict[sympy.Symbol, int] = {}
        for node, value in self.values.items():
            example = node.meta.get("example_value")
            pairs = [(example, value)]
            if isinstance(example, torch.Tensor):
                pairs = list(zip(example.shape, value.shape, strict=True))
            for symbolic, number in pairs:
                if isinstance(symbolic, torch.SymInt) and symbolic.node.expr.is_Symbol:
                    found[symbolic.node.expr] = int(number)
        return found


class _Recorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, captured: Captured):
        super().__init__(gm, garbage_collect_values=False)
        self.captured = captured
        self.masks = {site.mask for site in captured.sites}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            return super().run_node(n)
        for site in self.captured.sites:
            if site.mask is not None and n in site.covered and site.mask in n.all_input_nodes:
                self.captured.values[site.mask] = self.env[site.mask].clone()
        result = super().run_node(n)
        self.captured.values[n] = result.clone() if isinstance(result, torch.Tensor) else result
        return result


def capture(
    function: Callable[..., Any], *args: Any, dynamic: bool | None = None, **kwargs: Any
) -> list[Captured]:
    """The graphs that ``torch.compile`` makes of this call, proven when compiled and then run."""
    found: list[Captured] = []

    def backend(gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        scan = GraphScan(gm)
        sites = [*sdpa.find(scan), *eager.find(scan)]
        found.append(Captured(gm, sites, [prove_mask(site, scan) for site in sites]))
        gm.graph.lint()
        return found[-1]

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=dynamic)(*args, **kwargs)
    return found


def proofs(captured: list[Captured]) -> list[MaskPredicate | NotProven]:
    """Every proof of every graph."""
    return [proof for graph in captured for proof in graph.proofs]


def assert_predicates_are_the_masks(captured: list[Captured]) -> int:
    """Every proven predicate allows exactly what the mask of the run allowed; how many were compared."""
    compared = 0
    for graph in captured:
        symbols = graph.symbols()
        for site, proof in zip(graph.sites, graph.proofs, strict=True):
            if isinstance(proof, NotProven):
                continue
            q_len, kv_len = graph.values[site.query].shape[2], graph.values[site.key].shape[2]
            allowed = torch.ones(1, 1, q_len, kv_len, dtype=torch.bool)
            if site.is_causal:
                allowed = allowed.tril()
            if site.mask is not None:
                mask = graph.values[site.mask]
                allowed = allowed & (mask if mask.dtype == torch.bool else mask == 0)
            predicted = evaluate(proof, q_len, kv_len, graph.values, symbols)
            assert torch.equal(*torch.broadcast_tensors(allowed, predicted)), f"{proof} is not the mask"
            if not proof.may_have_empty_rows:
                assert allowed.any(-1).all(), f"{proof} has an empty row"
            compared += 1
    return compared
