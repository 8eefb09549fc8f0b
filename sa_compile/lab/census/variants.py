"""One way of calling a model, compiled and compared with the uncompiled model."""

from __future__ import annotations

import copy
import inspect
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sa_compile import report
from sa_compile.lab.census.overrides import OVERRIDES
from sa_compile.lab.census.tiny import SEED, VOCABULARY
from sa_compile.model_call import cache_argument
from sa_compile.passes.rewrite import score_tensors

Backend = str | Callable[..., Any]  # as torch.compile(backend=...) takes it

TOLERANCE = 1e-4
# 4.5 query blocks of 16, longer than every sliding window (24) and chunk (32) of the tiny models.
LENGTH = 72
OTHER_LENGTH = 56
FIRST_CHUNK = 32
BATCH = 2
LEFT_PADDING = 11
# Long enough for sampling at these lengths; with tau = 0 sampling keeps every block and must be exact.
OPTIONS: dict[str, Any] = {"tau": 0.0, "block_q": 16, "block_k": 16, "min_seq_len": 32}


@dataclass(frozen=True)
class Variant:
    """How the model is called: 2-D mask (left padding), cache, dynamic shapes, second chunk on a cache."""

    mask: bool
    cache: bool
    dynamic: bool = False
    chunk: bool = False
    inner: str = "aot_eager"

    def __str__(self) -> str:
        parts = ["mask" if self.mask else "no mask", "cache" if self.cache else "no cache"]
        parts += ["dynamic"] * self.dynamic + ["second chunk"] * self.chunk
        parts += ["Inductor"] * (self.inner == "inductor")
        return ", ".join(parts)


# Dynamic shapes and the second chunk take one combination of mask and cache. AOTAutograd, the slower half of
# compiling, sees one variant with a mask and one without.
FULL = (
    Variant(mask=False, cache=False),
    Variant(mask=False, cache=True, inner="eager"),
    Variant(mask=True, cache=False, inner="eager"),
    Variant(mask=True, cache=True),
    Variant(mask=True, cache=True, dynamic=True, inner="eager"),
    Variant(mask=True, cache=True, chunk=True, inner="eager"),
)
# For the eager spelling of a class that was censused with SDPA: its masks are the same ones.
HALF = (FULL[0], FULL[3], FULL[4])
QUICK = (
    Variant(mask=False, cache=False),
    Variant(mask=True, cache=True, dynamic=True, inner="eager"),
)
INDUCTOR = (
    Variant(mask=False, cache=True, inner="inductor"),
    Variant(mask=True, cache=False, inner="inductor"),
)


class NotApplicable(Exception):
    """The model has no such argument, or keeps no cache."""


def why_not_applicable(model: nn.Module, variant: Variant) -> str | None:
    """The argument that the variant needs and ``model.forward`` lacks; None if it can be called so."""
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if variant.mask and "attention_mask" not in parameters and not open_ended:
        return "forward takes no attention_mask"
    if variant.cache and "use_cache" not in parameters and not open_ended:
        return "forward takes no use_cache"
    if variant.chunk and cache_argument(model) not in parameters and not open_ended:
        return "forward takes no past_key_values"
    return None


def measure(model: nn.Module, variant: Variant, backend: Backend = "sampleattn") -> dict[str, Any]:
    """Compile ``model`` with ``backend`` ("sampleattn", or another to compare with) and call it.

    Returns plain data: "status" ("ok", "wrong", "crash", "not applicable" or "uncompiled fails"), "error"
    (relative to the norm of the uncompiled logits, the worst over the lengths), "sites", "left" (score-shaped
    nodes left in graphs that were rewritten throughout) and "seconds". Never raises for what the model or the
    compiler does.
    """
    start = time.perf_counter()
    result = _measure(model, variant, backend)
    return {"variant": str(variant), **result, "seconds": round(time.perf_counter() - start, 2)}


@torch.no_grad()
def _measure(model: nn.Module, variant: Variant, backend: Backend) -> dict[str, Any]:
    reason = why_not_applicable(model, variant)
    if reason is not None:
        return {"status": "not applicable", "reason": reason}
    lengths = (LENGTH, OTHER_LENGTH) if variant.dynamic else (LENGTH,)
    try:
        calls = [_arguments(model, variant, length) for length in lengths]
        references = [_logits(model(**copy.deepcopy(call))) for call in calls]
    except NotApplicable as missing:
        return {"status": "not applicable", "reason": str(missing)}
    except Exception as error:
        return {"status": "uncompiled fails", "reason": first_line(error)}
    torch._dynamo.reset()
    compiled = _compile(model, variant, backend)
    with report.collect() as reports:
        try:
            outputs = [_logits(compiled(**copy.deepcopy(call))) for call in calls]
        except Exception as error:
            return {"status": "crash", "reason": first_line(error), "sites": _sites(reports)}
    distance = max(relative_error(out, ref) for out, ref in zip(outputs, references, strict=True))
    return {
        "status": "ok" if distance <= TOLERANCE else "wrong",
        "error": distance,
        "graphs": len(reports),
        "sites": _sites(reports),
        "left": _left(reports),
    }


def _compile(model: nn.Module, variant: Variant, backend: Backend) -> Any:
    if backend == "sampleattn":
        options = {**OPTIONS, "inner": variant.inner}
        return torch.compile(model, backend=backend, options=options, dynamic=variant.dynamic)
    return torch.compile(model, backend=backend, dynamic=variant.dynamic)


def _arguments(model: nn.Module, variant: Variant, length: int) -> dict[str, Any]:
    """The arguments of one call; the same tokens and the same padding for every variant of a length."""
    generator = torch.Generator().manual_seed(SEED + length)
    rows = BATCH
    if OVERRIDES.get(type(model).__name__, {}).get("inputs") == "codebooks":
        config: Any = model.config
        rows = BATCH * config.get_text_config(decoder=True).num_codebooks
    tokens = torch.randint(4, VOCABULARY, (rows, length), generator=generator)
    arguments: dict[str, Any] = {"input_ids": tokens}
    if "use_cache" in inspect.signature(model.forward).parameters:
        arguments["use_cache"] = variant.cache
    if variant.mask:
        padding = torch.ones(BATCH, length, dtype=torch.long)
        padding[-1, :LEFT_PADDING] = 0
        arguments["attention_mask"] = padding
    if variant.chunk:
        _advance(model, arguments)
    return arguments


def _advance(model: nn.Module, arguments: dict[str, Any]) -> None:
    """Run the first chunk uncompiled; what is left to call is the second chunk, on its cache."""
    first = {**arguments, "input_ids": arguments["input_ids"][:, :FIRST_CHUNK]}
    if "attention_mask" in arguments:
        first["attention_mask"] = arguments["attention_mask"][:, :FIRST_CHUNK]
    cache = getattr(model(**first), "past_key_values", None)
    if cache is None:
        raise NotApplicable("the model returns no cache")
    arguments["input_ids"] = arguments["input_ids"][:, FIRST_CHUNK:]
    arguments[cache_argument(model)] = cache


def _logits(output: Any) -> torch.Tensor:
    return output.logits if hasattr(output, "logits") else output[0]


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """``||output - reference|| / ||reference||`` over all positions; infinite if NaNs differ."""
    if output.shape != reference.shape or not torch.equal(output.isfinite(), reference.isfinite()):
        return float("inf")
    finite = reference.isfinite()
    difference = (output - reference)[finite].double().norm()
    return float(difference / reference[finite].double().norm().clamp_min(1e-30))


@torch.no_grad()
def reach(model: nn.Module) -> float:
    """How far the last logits move (relative) when a token eight places before changes."""
    arguments = _arguments(model, Variant(mask=False, cache=False), LENGTH)
    reference = _logits(model(**arguments))[..., -1:, :]
    arguments["input_ids"] = arguments["input_ids"].clone()
    arguments["input_ids"][:, LENGTH - 8] = 4 + (arguments["input_ids"][:, LENGTH - 8] - 3) % (VOCABULARY - 4)
    return relative_error(_logits(model(**arguments))[..., -1:, :], reference)


def _sites(reports: list[report.GraphReport]) -> list[dict[str, Any]]:
    """Equal sites counted, in order of first appearance; reasons without the names of nodes."""
    counts: Counter[tuple[str, ...]] = Counter()
    for graph in reports:
        for site in graph.sites:
            reason = re.sub(r" \(at \w+\)", "", site.reason)
            counts[(site.spelling, site.mask, site.outcome, site.form, reason)] += 1
    names = ("spelling", "mask", "outcome", "form", "reason")
    return [{**dict(zip(names, key, strict=True)), "count": count} for key, count in counts.items()]


def _left(reports: list[report.GraphReport]) -> list[str]:
    """Nodes of the shape of a score matrix in graphs of which every attention was rewritten."""
    left: list[str] = []
    for graph in reports:
        if graph.graph is not None and all(site.rewritten for site in graph.sites):
            left += [str(node) for node in score_tensors.score_shaped_nodes(graph.graph, graph.sites)]
    return left


def first_line(error: BaseException) -> str:
    """The error's type and the first line of its message that says something, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += " " + lines[1]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
