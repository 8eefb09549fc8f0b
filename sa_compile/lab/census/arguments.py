"""The arguments of one call of a tiny model: tokens, a 2-D mask, a cache of a first chunk, an image."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from sa_compile.lab.census import classes, media
from sa_compile.lab.census.overrides import OVERRIDES
from sa_compile.lab.census.shrink import FIRST_TOKEN, VOCABULARY
from sa_compile.model_call import cache_argument, cache_of

SEED = 20240615
# 4.5 query blocks of 16, longer than every sliding window (24) and chunk (32) of the tiny models.
LENGTH = 72
OTHER_LENGTH = 56
FIRST_CHUNK = 32
BATCH = media.BATCH
LEFT_PADDING = 11
_FIRST_PLACE = LEFT_PADDING + 1  # of what stands for an image
_BEHIND = 44  # places at least behind it
_TRIES = 16  # ways to make an image
_CHANGED = 8  # places before the end: the token that `reach` changes


@dataclass(frozen=True)
class Variant:
    """How the model is called: 2-D mask (left padding), cache, dynamic shapes, second chunk on a cache, and
    with an image or a sound."""

    mask: bool
    cache: bool
    dynamic: bool = False
    chunk: bool = False
    media: bool = False
    inner: str = "aot_eager"

    def __str__(self) -> str:
        parts = ["image or sound"] * self.media
        parts += ["mask" if self.mask else "no mask", "cache" if self.cache else "no cache"]
        parts += ["dynamic"] * self.dynamic + ["second chunk"] * self.chunk
        parts += ["Inductor"] * (self.inner == "inductor")
        return ", ".join(parts)


class NotApplicable(Exception):
    """The model has no such argument, keeps no cache, or takes no image that the census can make."""


PLAIN = Variant(mask=False, cache=False)


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


def arguments_of(
    model: nn.Module, variant: Variant, length: int = LENGTH, shown: media.Media | None = None
) -> dict[str, Any]:
    """The arguments of one call; the same tokens and the same padding for every variant of a length.

    ``shown``: the image or sound of a variant with ``media``.
    """
    if variant.media:
        if shown is None:
            raise NotApplicable("no image or sound was found that it takes")
        length = max(length, _FIRST_PLACE + shown.tokens + _BEHIND)
    generator = torch.Generator().manual_seed(SEED + length)
    parameters = inspect.signature(model.forward).parameters
    rows = BATCH
    config: Any = model.config
    if OVERRIDES.get(type(model).__name__, {}).get("inputs") == "codebooks":
        rows = BATCH * config.get_text_config(decoder=True).num_codebooks
    tokens = torch.randint(FIRST_TOKEN, VOCABULARY, (rows, length), generator=generator)
    arguments: dict[str, Any] = {"input_ids": tokens}
    if "use_cache" in parameters:
        arguments["use_cache"] = variant.cache
    if variant.mask:
        padding = torch.ones(BATCH, length, dtype=torch.long)
        padding[-1, :LEFT_PADDING] = 0
        arguments["attention_mask"] = padding
    if variant.media and shown is not None:
        _show(arguments, shown, parameters)
    if config.is_encoder_decoder:
        if isinstance(getattr(config, "eos_token_id", None), int):
            tokens[:, -1] = config.eos_token_id
        if "decoder_input_ids" in parameters:
            arguments["decoder_input_ids"] = tokens
    if variant.chunk:
        _advance(model, arguments)
    return arguments


def _show(arguments: dict[str, Any], shown: media.Media, parameters: Any) -> None:
    """Put the image's tokens behind the padding, and say where they are, as processors do."""
    tokens = arguments["input_ids"]
    places = slice(_FIRST_PLACE, _FIRST_PLACE + shown.tokens)
    tokens[:, places] = shown.token
    if shown.start is not None:
        tokens[:, _FIRST_PLACE - 1] = shown.start
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in parameters and shown.what == "image":
            kinds = torch.zeros_like(tokens)
            kinds[:, places] = 1
            arguments[name] = kinds
    arguments.update(shown.arguments)


def _advance(model: nn.Module, arguments: dict[str, Any]) -> None:
    """Run the first chunk uncompiled; what is left to call is the second chunk, on its cache."""
    first = {**arguments, "input_ids": arguments["input_ids"][:, :FIRST_CHUNK]}
    if "attention_mask" in arguments:
        first["attention_mask"] = arguments["attention_mask"][:, :FIRST_CHUNK]
    cache = cache_of(model(**first))
    if cache is None:
        raise NotApplicable("the model returns no cache")
    arguments["input_ids"] = arguments["input_ids"][:, FIRST_CHUNK:]
    arguments[cache_argument(model)] = cache


def logits_of(output: Any) -> torch.Tensor:
    """What the census compares of a model's output."""
    return output.logits if hasattr(output, "logits") else output[0]


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """``||output - reference|| / ||reference||`` over all positions; infinite if NaNs differ."""
    if output.shape != reference.shape or not torch.equal(output.isfinite(), reference.isfinite()):
        return float("inf")
    finite = reference.isfinite()
    difference = (output - reference)[finite].double().norm()
    return float(difference / reference[finite].double().norm().clamp_min(1e-30))


@torch.no_grad()
def find_media(model: nn.Module) -> media.Media | None:
    """The first image or sound with which the model runs, and which shows in its logits, or None."""
    if classes.kind_of(type(model).__name__) != classes.MULTIMODAL:
        return None
    variant = Variant(mask=True, cache=False, media=True)
    for shown in islice(media.candidates(model), _TRIES):
        arguments = arguments_of(model, variant, LENGTH, shown)
        try:
            reference = logits_of(model(**copy.deepcopy(arguments)))
            for name in ("pixel_values", "input_features", "input_values", "high_res_pixel_values"):
                if name in arguments:
                    arguments[name] = arguments[name] * -0.5
            changed = logits_of(model(**arguments))
        except Exception:  # the model's own checks, of any kind: this is no image of its
            continue
        if bool(reference.isfinite().all()) and relative_error(changed, reference) > 1e-4:
            return shown
    return None


@torch.no_grad()
def reach(model: nn.Module, shown: media.Media | None = None) -> tuple[float, bool | None]:
    """How far the last outputs move (relative) when a token eight places before the end changes, and whether
    nothing before that token moves: attention is causal, which None leaves open (no output a token)."""
    variant = PLAIN
    try:
        reference = _hidden(model, arguments_of(model, variant))
    except Exception:
        if shown is None:
            raise
        variant = Variant(mask=True, cache=False, media=True)
        reference = _hidden(model, arguments_of(model, variant, LENGTH, shown))
    arguments = arguments_of(model, variant, LENGTH, shown)
    changed = arguments["input_ids"] = arguments["input_ids"].clone()
    place = changed.shape[1] - _CHANGED
    changed[:, place] = FIRST_TOKEN + (changed[:, place] + 1 - FIRST_TOKEN) % (VOCABULARY - FIRST_TOKEN)
    moved = _hidden(model, arguments)
    config: Any = model.config
    if reference.dim() < 3 or config.is_encoder_decoder:
        return relative_error(moved, reference), None
    before = relative_error(moved[..., :place, :], reference[..., :place, :])
    return relative_error(moved[..., -1:, :], reference[..., -1:, :]), before < 1e-6


def _hidden(model: nn.Module, arguments: dict[str, Any]) -> torch.Tensor:
    """The logits, or what a classifier is given: an output a token."""
    if classes.kind_of(type(model).__name__) != classes.CLASSIFICATION:
        return logits_of(model(**arguments))
    config: Any = model.config
    base = getattr(model, str(model.base_model_prefix), None)
    if base is None or config.is_encoder_decoder:
        return logits_of(model(**arguments))
    return base(**arguments)[0]
