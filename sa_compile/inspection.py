"""``sa_compile.explain``: what the backend would do to a model, before anyone relies on it."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch

from sa_compile import report
from sa_compile.backend import compile_graph
from sa_compile.config import SampleAttentionConfig
from sa_compile.report import Report


def explain(model: Any, *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any) -> Report:
    """Run ``model(*args, **kwargs)`` once through the backend and report every attention found.

    ``options``: as for ``torch.compile(options=...)``; the rewritten graph runs with ``inner="eager"`` unless
    the options say otherwise, so nothing is compiled for speed. Code that is already compiled is left alone.
    Grad mode
    counts: call it under ``torch.no_grad()`` to see what inference does.
    """
    config = SampleAttentionConfig.from_options({"inner": "eager", **(options or {})})

    def sampleattn(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        return compile_graph(gm, example_inputs, config)

    with report.collect() as reports:
        torch.compile(_fresh(_call), backend=sampleattn)(model, args, kwargs)
    return Report(tuple(reports))


def _call(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return model(*args, **kwargs)


def _fresh(function: Any) -> types.FunctionType:
    """The function with a code object of its own: Dynamo's recompile limit counts per code object."""
    return types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
