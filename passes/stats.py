"""``stats=True``: density and measured CRA of every sampled attention, as further outputs of the graph.

Each sampled site of a top-level graph adds one output behind the captured ones: float32 [Hq, 3] with the
columns density (kept blocks / blocks that the mask allows, mean over the batch), smallest CRA and mean CRA
over the batch (CRA: kept share of the softmax mass, smallest over the sampled rows). Nothing the model
computes reads them. ``with_stats`` takes them off again. Outputs, not buffers: they are functional, so
Inductor, its caches and CUDA graphs treat them like any result. Sites in child graph modules have none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from sa_compile.kernels import ops

from .fx_utils import Emitter, value

COLUMNS = ("density", "cra_min", "cra_mean")
_BITS = 32

Compiled = Callable[..., Sequence[Any]]


def emit_stats(
    emitter: Emitter, block_mask: fx.Node, allowed_mask: fx.Node, mass_arguments: tuple[Any, ...]
) -> fx.Node:
    """Nodes that compute the stats of one site; float32 [Hq, 3].

    ``block_mask`` int32 [B, Hq, n_query_blocks, words]: the kept blocks; ``allowed_mask``: what the mask
    allows. ``mass_arguments``: those of ``sampleattn.attention_mass``.
    """
    mass = emitter.function(ops.attention_mass_op, *mass_arguments)  # [B, Hq]
    kept = _popcount(emitter, block_mask)
    allowed = emitter.method(
        "clamp", _popcount(emitter, allowed_mask), min=1.0
    )  # 0 where all keys are padding
    density = emitter.method("mean", emitter.function(operator.truediv, kept, allowed), 0)
    columns = [density, emitter.method("amin", mass, 0), emitter.method("mean", mass, 0)]
    return emitter.function(torch.stack, columns, 1)


def add_outputs(graph: fx.Graph, nodes: Sequence[fx.Node]) -> None:
    """Append ``nodes`` to what the graph returns."""
    (output,) = graph.find_nodes(op="output")
    output.args = ((*output.args[0], *nodes),)


def with_stats(compiled: Compiled, count: int, sink: Callable[[Sequence[Tensor]], None]) -> Compiled:
    """The compiled graph without its last ``count`` outputs, which go to ``sink`` in order of the sampled
    sites.

    ``sink`` must copy what it keeps: under CUDA graphs the next run overwrites it. A run with fake tensors,
    as DDPOptimizer makes one, measures nothing.
    """

    def run(*arguments: Any) -> Sequence[Any]:
        outputs = compiled(*arguments)
        if not any(isinstance(output, FakeTensor) for output in outputs[-count:]):
            sink(outputs[-count:])
        return outputs[:-count]

    run._boxed_call = getattr(compiled, "_boxed_call", False)  # type: ignore[attr-defined]
    return run


def _popcount(emitter: Emitter, block_mask: fx.Node) -> fx.Node:
    """Number of set bits of each head: float32 [B, H]."""
    shifts = emitter.function(torch.arange, _BITS, dtype=torch.int32, device=value(block_mask).device)
    words = emitter.method("unsqueeze", block_mask, -1)
    bits = emitter.function(operator.and_, emitter.function(operator.rshift, words, shifts), 1)
    return emitter.method("sum", bits, (2, 3, 4), dtype=torch.float32)
