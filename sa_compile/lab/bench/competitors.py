"""What ``bench ttft`` compares: ways to run one and the same transformers model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sa_compile.lab.bench import parts

BASELINES = {
    "eager": "transformers' default, not compiled: SDPA where the model has it, PyTorch chooses the kernel",
    "flash2": "the same with SDPA pinned to FlashAttention-2 (CUDA only)",
    "inductor": "torch.compile(model)",
    "flex": "attn_implementation='flex_attention', torch.compile(model)",
    "rest": "torch.compile(model) with attentions that return their queries: all that is not attention",
    "interface": "attn_implementation='sampleattn', not compiled",
    "exact": "torch.compile(model, backend='sampleattn') with no prompt long enough to be sampled",
}
OURS = "sampleattn"
COMPILED = ("inductor", "flex", "exact", OURS, "rest")
_NEVER_SAMPLED = {"min_seq_len": 1 << 40}


@dataclass(frozen=True)
class Competitor:
    """``run(**inputs)`` is one forward of the model in this way."""

    name: str
    run: Callable[..., Any]


def check(names: list[str], device: str, argument: str = "--baselines") -> None:
    """Raise ``ValueError`` for a baseline of ``argument`` that is unknown or cannot run on ``device``."""
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"{argument}: unknown baseline {name!r}; known: {', '.join(BASELINES)}")
    if "flash2" in names and torch.device(device).type != "cuda":
        raise ValueError(f"{argument}: flash2 needs a CUDA device, got --device {device}")


def build(name: str, model: nn.Module, options: Mapping[str, Any]) -> Competitor:
    """The competitor ``name`` for a model; nothing is compiled before its first run."""
    default = "sdpa" if getattr(model, "_supports_sdpa", True) else "eager"
    implementations = {"flex": "flex_attention", "interface": "sampleattn", "rest": parts.NO_ATTENTION}
    implementation = implementations.get(name, default)
    if name == "rest":
        parts.register_no_attention()
    if name == "interface":
        from sa_compile import hf

        hf.configure(model, {k: v for k, v in options.items() if k not in ("inner", "inductor", "trace")})
    forward = _forward(model)
    if name in (OURS, "exact"):
        options = {**options, **(_NEVER_SAMPLED if name == "exact" else {})}
        forward = torch.compile(forward, backend="sampleattn", dynamic=False, options=options)
    elif name in COMPILED:
        forward = torch.compile(forward, dynamic=False)
    from transformers import DynamicCache

    arounds = {"flash2": _pinned_to_flash, "flex": parts.block_mask_in_one_graph}
    around = arounds.get(name, nullcontext)

    def run(**inputs: Any) -> Any:
        if model.config._attn_implementation != implementation:  # type: ignore[union-attr]
            model.set_attn_implementation(implementation)  # type: ignore[operator]
        if name == "flex" and inputs.get("use_cache"):
            # Dynamo loses the attributes of a cache that a graph with FlexAttention makes for itself.
            inputs["past_key_values"] = DynamicCache(config=model.config)  # type: ignore[arg-type]
        with around():
            return forward(**inputs)

    return Competitor(name, run)


def _forward(model: nn.Module) -> Callable[..., Any]:
    """The model's call as a function of its own, so that competitors share no compiled code."""

    def forward(**inputs: Any) -> Any:
        return model(**inputs).logits

    # Dynamo keeps compiled code, and counts recompiles, for each code object.
    forward.__code__ = forward.__code__.replace()
    return forward


@contextmanager
def _pinned_to_flash() -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        yield
