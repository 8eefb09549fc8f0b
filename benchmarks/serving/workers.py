"""What engine.py has done in each of vLLM's workers, one for each tensor-parallel rank.

Every function is given the worker (``vllm.LLM.collective_rpc``).
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

import torch

# Until :func:`leave`: contexts that were entered, by name.
_entered: dict[str, ExitStack] = {}


def about(worker: Any) -> dict[str, Any]:
    """The device and what it runs."""
    import triton
    import vllm

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {
            "python": sys.version.split()[0],
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
    }


def configure(worker: Any, options: dict[str, Any] | None) -> None:
    """The plug-in's options from now on."""
    from sa_compile.serving.vllm.backend import SampledBuilder
    from sa_compile.serving.vllm.options import options_of

    config = options_of({"sampleattn": options or {}})
    for layer in _layers(worker).values():
        if hasattr(getattr(layer, "impl", None), "not_sampled"):
            layer.impl.config = config
    for groups in worker.model_runner.attn_groups:
        for group in groups:
            for builder in group.metadata_builders:
                if isinstance(builder, SampledBuilder):
                    builder._config = config


def counted(worker: Any) -> dict[str, Any]:
    """The plug-in's counters, and the most memory that tensors took, in GiB."""
    from sa_compile.serving.vllm import counted

    counts = vars(counted())
    if counts["density"] != counts["density"]:  # JSON has no NaN
        counts = {**counts, "density": None}
    return {**counts, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def warm(worker: Any, sizes: list[tuple[int, int]]) -> None:
    """Our attention of one layer for these rows and keys: what has to be compiled for them is."""
    import layer_times

    layer_times.run_once(_layers(worker), worker.model_runner.attn_groups, sizes)


def layer(worker: Any, sizes: list[tuple[int, int]], kernels_of: list[int]) -> dict[str, Any]:
    """The attention of one layer by the clock of the GPU, and the kernels it runs (layer_times.py)."""
    import layer_times

    return layer_times.measure(_layers(worker), worker.model_runner.attn_groups, sizes, kernels_of)


def attend_so_much(worker: Any, density: float) -> None:
    """This share of the blocks is attended, while selection runs all the same."""
    from sa_compile.lab.bench.op_hooks import density_set

    _enter("density", density_set("cuda" if torch.cuda.is_available() else "cpu", density))


def fail(worker: Any) -> None:
    """Our attention raises."""
    from sa_compile import prefill

    _enter("failing", mock.patch.object(prefill, "sampled", side_effect=RuntimeError("made to fail")))


def give_queries_back(worker: Any) -> None:
    """Attention copies its queries."""

    def copy(impl: Any, layer: Any, query: Any, *arguments: Any, **more: Any) -> Any:
        return more["output"].copy_(query)

    for impl in {type(layer.impl) for layer in _layers(worker).values() if hasattr(layer, "impl")}:
        _enter("without attention", mock.patch.object(impl, "forward", copy))


def leave(worker: Any, name: str) -> None:
    """Of "density", "failing" and "without attention", this is over."""
    _entered.pop(name).close()


def _enter(name: str, context: AbstractContextManager[Any]) -> None:
    _entered.setdefault(name, ExitStack()).enter_context(context)


def _layers(worker: Any) -> dict[str, Any]:
    found: dict[str, Any] = worker.vllm_config.compilation_config.static_forward_context
    return found
