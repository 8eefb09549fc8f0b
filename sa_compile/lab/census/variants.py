"""One way of calling a model, compiled and compared with the uncompiled model."""

from __future__ import annotations

import copy
import re
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from sa_compile import report
from sa_compile.lab.census.arguments import (
    LENGTH,
    OTHER_LENGTH,
    NotApplicable,
    Variant,
    arguments_of,
    logits_of,
    relative_error,
    why_not_applicable,
)
from sa_compile.lab.census.media import Media
from sa_compile.passes.rewrite import score_tensors
from sa_compile.passes.site_record import SiteRecord

Backend = str | Callable[..., Any]  # as torch.compile(backend=...) takes it

TOLERANCE = 1e-4
# Long enough for sampling at these lengths; with peak = 0 sampling keeps every block and must be exact.
OPTIONS: dict[str, Any] = {"peak": 0.0, "block_q": 16, "block_k": 16, "min_seq_len": 32}

# Graphs are run as they are: AOTAutograd and Inductor, which cost most of the time, see those of QUICK and
# INDUCTOR alone.
FULL = (
    Variant(mask=True, cache=True, inner="eager"),
    Variant(mask=True, cache=True, chunk=True, inner="eager"),
)
# For the eager spelling of a class that was censused with SDPA: its masks are the same ones. And for models
# whose layers unroll, a step a token, into graphs that take minutes to capture.
HALF = (FULL[0],)
QUICK = (
    Variant(mask=False, cache=False),
    Variant(mask=True, cache=True, dynamic=True, inner="eager"),
)
# With an image or a sound, as the processor hands it over; text alone where no image was found.
SHOWN = (Variant(mask=True, cache=True, media=True, inner="eager"),)
CLASSIFICATION = (Variant(mask=True, cache=False, inner="eager"),)
INDUCTOR = (
    Variant(mask=False, cache=True, inner="inductor"),
    Variant(mask=True, cache=False, inner="inductor"),
)


def measure(
    model: nn.Module, variant: Variant, backend: Backend = "sampleattn", shown: Media | None = None
) -> dict[str, Any]:
    """Compile ``model`` with ``backend`` ("sampleattn", or another to compare with) and call it.

    Returns plain data: "status" ("ok", "wrong", "crash", "not applicable" or "uncompiled fails"), "error"
    (relative to the norm of the uncompiled logits, the worst over the lengths), "sites", "left" (score-shaped
    nodes left in graphs that were rewritten throughout) and "seconds". Never raises for what the model or the
    compiler does.
    """
    start = time.perf_counter()
    result = _measure(model, variant, backend, shown)
    return {"variant": str(variant), **result, "seconds": round(time.perf_counter() - start, 2)}


@torch.no_grad()
def _measure(model: nn.Module, variant: Variant, backend: Backend, shown: Media | None) -> dict[str, Any]:
    reason = why_not_applicable(model, variant)
    if reason is not None:
        return {"status": "not applicable", "reason": reason}
    lengths = (LENGTH, OTHER_LENGTH) if variant.dynamic else (LENGTH,)
    try:
        calls = [arguments_of(model, variant, length, shown) for length in lengths]
        references = [logits_of(model(**copy.deepcopy(call))) for call in calls]
    except NotApplicable as missing:
        return {"status": "not applicable", "reason": str(missing)}
    except Exception as error:
        return {"status": "uncompiled fails", "reason": first_line(error)}
    rows = {call["input_ids"].shape[1] for call in calls}
    torch._dynamo.reset()
    compiled = _compile(model, variant, backend)
    with report.collect() as reports:
        try:
            outputs = [logits_of(compiled(**copy.deepcopy(call))) for call in calls]
        except Exception as error:
            return {"status": "crash", "reason": first_line(error), "sites": _sites(reports, rows)}
    left = _left(reports)
    if left:  # a size of the model may equal the length by chance, but no other length
        with report.collect() as others:
            compiled(**arguments_of(model, variant, LENGTH + 4, shown))
        left = [name for name in left if name in _left(others)]
    distance = max(relative_error(out, ref) for out, ref in zip(outputs, references, strict=True))
    return {
        "status": "ok" if distance <= TOLERANCE else "wrong",
        "error": distance,
        "graphs": len(reports),
        "sites": _sites(reports, rows),
        "left": left,
    }


def _compile(model: nn.Module, variant: Variant, backend: Backend) -> Any:
    if backend == "sampleattn":
        options = {**OPTIONS, "inner": variant.inner}
        return torch.compile(model, backend=backend, options=options, dynamic=variant.dynamic)
    return torch.compile(model, backend=backend, dynamic=variant.dynamic)


def _sites(reports: list[report.GraphReport], lengths: Collection[int]) -> list[dict[str, Any]]:
    """Equal sites counted, in order of first appearance; reasons without the names of nodes.

    "part" is "language" where a query row is a token (of prompts of these ``lengths``), else "tower": of an
    image or a sound.
    """
    counts: Counter[tuple[Any, ...]] = Counter()
    for graph in reports:
        for site in graph.sites:
            reason = _NODE.sub("a node", re.sub(r" \(at \w+\)", "", site.reason))
            dims = (site.head_dim, site.value_head_dim)
            kind = (_part(site, lengths), *dims, site.spelling, site.mask, site.outcome, site.form)
            counts[(*kind, reason)] += 1
    names = ("part", "head_dim", "value_head_dim", "spelling", "mask", "outcome", "form", "reason")
    return [{**dict(zip(names, key, strict=True)), "count": count} for key, count in counts.items()]


# A node's name in a reason: it would keep apart what is one reason.
_NODE = re.compile(r"\b[a-z]+(?:_[a-z]+)*_\d+\b")
_TOWER = re.compile(
    r"vision|visual|image|audio|sound|speech|qformer|resampler|perceiver|connector|tower|protein"
)


def _part(site: SiteRecord, lengths: Collection[int]) -> str:
    understood = isinstance(site.head_dim, int)
    # The rows of what is not understood may be those of a chunk: where its module has a name, that tells.
    if isinstance(site.q_len, int) and (understood or not site.module_path):
        return "language" if site.q_len in (1, *lengths) else "tower"
    pooled = (
        site.spelling == "multi_head_attention_forward"
    )  # nn.MultiheadAttention: no decoder is made of it
    return "tower" if pooled or _TOWER.search(site.module_path) else "language"


def _left(reports: list[report.GraphReport]) -> list[str]:
    """Nodes of the shape of a score matrix in graphs of which every attention was rewritten.

    Not where a graph reads a mask: that is one.
    """
    left: list[str] = []
    for graph in reports:
        rewritten = all(site.rewritten and site.form != "late" for site in graph.sites)
        if graph.graph is not None and rewritten:
            left += [str(node) for node in score_tensors.score_shaped_nodes(graph.graph, graph.sites)]
    return left


def first_line(error: BaseException) -> str:
    """The error's type and the first line of its message that says something, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += " " + lines[1]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
