"""What a graph gives out behind its captured outputs: stats, and what it found out of the masks it read.

Outputs, not buffers: they are functional, so Inductor, its caches and CUDA graphs treat them like any result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

Compiled = Callable[..., Sequence[Any]]


def add_outputs(graph: fx.Graph, nodes: Sequence[fx.Node]) -> None:
    """Append ``nodes`` to what the graph returns."""
    (output,) = graph.find_nodes(op="output")
    output.args = ((*output.args[0], *nodes),)


def without_outputs(compiled: Compiled, count: int, sink: Callable[[Sequence[Tensor]], None]) -> Compiled:
    """The compiled graph without its last ``count`` outputs, which go to ``sink``.

    ``sink`` must copy what it keeps: under CUDA graphs the next run overwrites it. A run with fake tensors,
    as DDPOptimizer makes one, says nothing.
    """

    def run(*arguments: Any) -> Sequence[Any]:
        outputs = compiled(*arguments)
        if not any(isinstance(output, FakeTensor) for output in outputs[-count:]):
            sink(outputs[-count:])
        return outputs[:-count]

    run._boxed_call = getattr(compiled, "_boxed_call", False)  # type: ignore[attr-defined]
    return run
