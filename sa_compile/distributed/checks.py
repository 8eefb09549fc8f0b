"""Which models, options and calls ranks can share: errors name the argument, what came, what is allowed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from sa_compile.config import SampleAttentionConfig
from sa_compile.distributed.implementation import CONTEXT

KNOWN_LAYERS = ("full_attention", "sliding_attention")
# Rotary embeddings whose angles depend on the largest position, of which ranks see different ones.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
SHARED = ("attention_mask", "input_ids", "inputs_embeds", "position_ids")  # tensors that are cut into rows
REFUSED = ("labels", "output_attentions", "output_hidden_states")


def check_options(config: SampleAttentionConfig) -> None:
    """Raises ValueError for a method whose ops take contiguous rows alone, or block sizes that differ."""
    ranges = config.tuned.ranges if config.tuned is not None else ()
    for one in (config, *(config.in_range(part) for part in ranges if part.options is not None)):
        if one.method != "adaptive" or one.means:
            raise ValueError(
                "context_parallel: 'method' must be 'adaptive' without 'means', whose ops know rows that "
                f"stand apart, got {one.method!r} with means={one.means}"
            )
        if (one.block_q, one.block_k) != (config.block_q, config.block_k):
            raise ValueError("context_parallel: all ranges of a profile must have the options' block sizes")


def attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """The attention modules of a causal LM by their layers."""
    found = {}
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and "attention" in type(module).__name__.lower():
            found[layer] = module
    return found


def check_model(model: PreTrainedModel, modules: Mapping[int, nn.Module], cache_names: Iterable[str]) -> None:
    """Raises ValueError for a model some of whose layers would see a rank's rows alone."""
    parameters = set(inspect.signature(model.forward).parameters)
    takes = {"position_ids", "logits_to_keep"} <= parameters and not parameters.isdisjoint(cache_names)
    if not isinstance(model, PreTrainedModel) or not takes:
        raise ValueError(
            "context_parallel: 'model' must be a causal LM of transformers whose forward takes position_ids, "
            f"logits_to_keep and a cache, got {type(model).__name__}"
        )
    if any(hasattr(module, CONTEXT) for module in modules.values()):
        raise ValueError("context_parallel: ranks share the prompts of this 'model' already")
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - set(KNOWN_LAYERS)
    if kinds or len(modules) != text.num_hidden_layers:
        raise ValueError(
            f"context_parallel: every layer of 'model' must be attention, full or with a sliding window; "
            f"{type(model).__name__} has {len(modules)} in {text.num_hidden_layers} layers"
            + (f", and types {', '.join(sorted(kinds))}" if kinds else "")
        )
    rope = repr(getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None))
    for kind in LENGTH_DEPENDENT_ROPE:
        if f"'{kind}'" in rope:
            raise ValueError(
                f"context_parallel: rotary embeddings of type {kind!r} depend on the largest position, of "
                f"which ranks see different ones; {type(model).__name__} has them"
            )


def check_call(given: Mapping[str, Any], cache_names: Iterable[str]) -> None:
    """Raises ValueError for arguments of a model's forward that mean something else on a rank's rows."""
    for name in REFUSED:
        if name in given and given[name] is not False:
            raise ValueError(f"context_parallel: {name!r} is not known on a prompt that ranks share")
    keep = given["logits_to_keep"]
    if not isinstance(keep, int):
        got = type(keep).__name__
        raise ValueError(f"context_parallel: 'logits_to_keep' must be a number of positions, got a {got}")
    known = {*SHARED, *cache_names, "cache_position"}
    for name, value in given.items():
        if isinstance(value, Tensor) and name not in known:
            raise ValueError(
                f"context_parallel: {name!r} is a tensor, and it is not known how ranks share it; known are "
                f"{', '.join(SHARED)}"
            )
