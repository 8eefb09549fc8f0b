"""``sa_compile.explain``: what the backend would do to a model, before anyone relies on it."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch

from sa_compile import report
from sa_compile.backend import compile_graph
from sa_compile.config import SampleAttentionConfig
from sa_compile.fingerprint import check_model
from sa_compile.profile import load_profile
from sa_compile.report import Report
from sa_compile.tensor_parallel import notes_on


def explain(model: Any, *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any) -> Report:
    """Run ``model(*args, **kwargs)`` once through the backend and report every attention found.

    ``options``: as for ``torch.compile(options=...)``; the rewritten graph runs with ``inner="eager"``
    unless the options say otherwise, so nothing is compiled for speed. Code that is already compiled is
    left alone. Grad mode counts: call it under ``torch.no_grad()`` to see what inference does. A
    ``profile`` is checked against the whole model, as :func:`check_profile` does.
    """
    config = SampleAttentionConfig.from_options({"inner": "eager", **(options or {})})
    if config.tuned is not None and isinstance(model, torch.nn.Module):
        check_model(config.tuned.model, model, config.tuned.path)

    def sampleattn(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        return compile_graph(gm, example_inputs, config)

    with report.collect(other_threads=False) as reports:
        torch.compile(_fresh(_call), backend=sampleattn)(model, args, kwargs)
    return Report(tuple(reports), notes_on(model))


def check_profile(model: torch.nn.Module, profile: str) -> None:
    """Check that the tuned profile in a file is for ``model``: its class, all parameters' names, shapes and
    dtypes, and values of some of them.

    Stricter than what ``options={"profile": file}`` can check, which sees one graph at a time. Raises
    :class:`~sa_compile.fingerprint.WrongModel` (a ValueError) naming what differs.
    """
    loaded = load_profile(profile)
    check_model(loaded.model, model, loaded.path)


def _call(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return model(*args, **kwargs)


def _fresh(function: Any) -> types.FunctionType:
    """The function with a code object of its own: Dynamo's recompile limit counts per code object."""
    return types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
