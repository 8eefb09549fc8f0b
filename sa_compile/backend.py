"""The backend: what ``torch.compile(model, backend="sampleattn")`` calls with each captured graph.

Registered by the entry point ``torch_dynamo_backends`` alone; nothing needs to be imported first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from sa_compile import inner_backend, recompiles, report
from sa_compile.config import SampleAttentionConfig
from sa_compile.fingerprint import check_graph
from sa_compile.gathered_stats import Gathered, register
from sa_compile.masks_seen import MasksSeen
from sa_compile.passes import pipeline
from sa_compile.passes.pass_log import PassLog
from sa_compile.passes.site_record import SiteRecord
from sa_compile.trace import GraphTrace

CompiledGraph = Callable[..., Any]


def sampleattn(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> CompiledGraph:
    """Rewrite the attention of a Dynamo graph and hand the graph to the inner backend.

    ``options``: names and values of :class:`SampleAttentionConfig`; ``mode``: Inductor's modes. Errors name
    the argument, what came and what is allowed.
    """
    config = SampleAttentionConfig.from_options(options)
    inner_backend.check(config, mode)
    recompiles.raise_limit()
    return compile_graph(gm, example_inputs, config, mode=mode)


def compile_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: SampleAttentionConfig,
    *,
    mode: str | None = None,
) -> CompiledGraph:
    """match -> prove -> decide -> rewrite (in place), report, then the inner backend."""
    trace = GraphTrace(config.trace) if config.trace else None
    if trace:
        trace.before(gm)
    log = PassLog()
    with torch._dynamo.utils.dynamo_timed("sampleattn_passes"):
        records = pipeline.run(gm, config, log)
    rewritten = any(record.rewritten for record in records)
    checked = _check_profile(gm, example_inputs, config, records)
    gathered = Gathered(records)
    register(gathered)
    last_graph = recompiles.last_graph()
    if last_graph:
        warnings.warn(f"sampleattn: this is {last_graph}", stacklevel=2)
    masks = MasksSeen(records)
    graph_report = report.GraphReport(gm, tuple(records), config, gathered, checked, last_graph, masks)
    report.publish(graph_report)
    report.warn_of_training_mode(records, config.min_seq_len)
    if trace:
        trace.after(gm, graph_report, log)
    compiled = inner_backend.compile_inner(gm, example_inputs, config, mode=mode, rewritten=rewritten)
    return gathered.wrap(masks.wrap(compiled))


def _check_profile(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: SampleAttentionConfig,
    records: Sequence[SiteRecord],
) -> str:
    """Compare the profile's model with the graph, if an attention takes its settings; what was compared."""
    sites = [record for record in records if record.profile_range]
    if config.tuned is None or not sites:
        return ""
    checked = check_graph(config.tuned.model, gm, example_inputs, sites, config.tuned.path)
    if not checked.weights:
        warnings.warn(
            f"profile {config.profile!r}: none of the weights that it names is an input of the graph, so "
            "only the shapes of its attentions were compared; sa_compile.check_profile compares all",
            stacklevel=2,
        )
    return str(checked)
