"""An image or a sound for a tiny model, as its processor would hand it over, made from the config alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sa_compile.lab.census.shrink import PATCHES

BATCH = 2
_SEED = 7


@dataclass(frozen=True)
class Media:
    """What a call takes beside its tokens: ``arguments``, and ``tokens`` places a row that stand for it.

    ``token`` is the id at those places, ``start`` that of the token before them, if there is one.
    """

    what: str  # "image" or "audio"
    arguments: dict[str, Any]
    token: int
    tokens: int
    start: int | None = None


def candidates(model: nn.Module) -> Iterator[Media]:
    """Ways in which the model may take an image, then a sound: the first with which it runs is its own."""
    parameters = inspect.signature(model.forward).parameters
    for what, made in (("image", _images(model, parameters)), ("audio", _sounds(model, parameters))):
        for arguments in made:
            for tokens in _token_counts(model, what, arguments):
                start = getattr(model.config, "vision_start_token_id", None) if what == "image" else None
                yield Media(what, arguments, _token(model.config, what), tokens, start)


def _token(config: Any, what: str) -> int:
    names = {
        "image": (
            "image_token_id",
            "img_context_token_id",
            "image_token_index",
            "image_patch_id",
            "media_placeholder_token_id",
        ),
        "audio": ("audio_token_id", "audio_token_index", "sound_token_id"),
    }[what]
    for part in (config, config.get_text_config(decoder=True)):
        for name in names:
            if isinstance(getattr(part, name, None), int):
                return getattr(part, name)
    return 3


def _images(model: nn.Module, parameters: Any) -> Iterator[dict[str, Any]]:
    vision = _sub_config(model.config, ("vision_config", "vit_config", "vision_tower_config", "vq_config"))
    generator = torch.Generator().manual_seed(_SEED)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    patch = _integer(vision, "patch_size", 14)
    channels = _integer(vision, "in_channels", None) or _integer(vision, "num_channels", 3)
    size = _integer(vision, "image_size", PATCHES * patch)
    if "pixel_values" not in parameters and "image_patches" not in parameters:
        return
    count = PATCHES * PATCHES
    if "image_grid_thw" in parameters:
        grid = torch.tensor([[1, PATCHES, PATCHES]] * BATCH)
        more: dict[str, Any] = {"image_grid_thw": grid}
        if "image_merge_sizes" in parameters:
            more["image_merge_sizes"] = torch.tensor([2] * BATCH)
        for times in (_integer(vision, "temporal_patch_size", 1), 2):
            yield {"pixel_values": noise(BATCH * count, channels * times * patch * patch), **more}
        yield {"pixel_values": noise(BATCH * count, channels, patch, patch), **more}
        return
    if "image_grid_hw" in parameters:
        grid = torch.tensor([[PATCHES, PATCHES]] * BATCH)
        yield {"pixel_values": noise(BATCH * count, channels * patch * patch), "image_grid_hw": grid}
    if "image_position_ids" in parameters:
        steps = torch.arange(PATCHES)
        places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(1, count, 2)
        for side in (patch, patch * _integer(vision, "pooling_kernel_size", 3)):
            patches = torch.rand((BATCH, count, channels * side * side), generator=generator)
            yield {"pixel_values": patches, "image_position_ids": places.repeat(BATCH, 1, 1)}
    if "spatial_shapes" in parameters:
        yield {
            "pixel_values": noise(BATCH, count, channels * patch * patch),
            "spatial_shapes": torch.tensor([[PATCHES, PATCHES]] * BATCH),
            "pixel_attention_mask": torch.ones(BATCH, count, dtype=torch.long),
        }
    if "target_sizes" in parameters:
        yield {
            "pixel_values": noise(1, channels, patch, BATCH * count * patch),
            "target_sizes": torch.tensor([[PATCHES, PATCHES]] * BATCH),
        }
    more = {}
    sizes: dict[str, Any] = {}
    if "image_sizes" in parameters:
        sizes["image_sizes"] = torch.tensor([[size, size]] * BATCH)
    if "pixel_mask" in parameters:
        more["pixel_mask"] = torch.ones(BATCH, size, size, dtype=torch.bool)
    if "qformer_input_ids" in parameters:
        more["qformer_input_ids"] = torch.full((BATCH, 4), 20)
        more["qformer_attention_mask"] = torch.ones(BATCH, 4, dtype=torch.long)
    if "high_res_pixel_values" in parameters:
        high = _sub_config(model.config, ("high_res_vision_config",))
        side = _integer(high, "image_size", size)
        more["high_res_pixel_values"] = noise(BATCH, channels, side, side)
    if "aspect_ratio_ids" in parameters:
        tiles = _integer(vision, "max_num_tiles", 4)
        mask = torch.zeros(BATCH, 1, tiles, dtype=torch.long)
        mask[..., 0] = 1
        yield {
            "pixel_values": noise(BATCH, 1, tiles, channels, size, size),
            "aspect_ratio_ids": torch.ones(BATCH, 1, dtype=torch.long),
            "aspect_ratio_mask": mask,
        }
        return
    # One image a row; a list of one; a whole image beside one tile of it, as the AnyRes processors cut it.
    for shape in ((), (1,), (2,)):
        for given in (sizes, {}) if sizes else ({},):
            yield {"pixel_values": noise(BATCH, *shape, channels, size, size), **given, **more}
    yield {"pixel_values": noise(BATCH, count, channels * patch * patch), **more}


def _sounds(model: nn.Module, parameters: Any) -> Iterator[dict[str, Any]]:
    audio = _sub_config(
        model.config, ("audio_config", "encoder_config", "audio_encoder_config", "sound_config")
    )
    generator = torch.Generator().manual_seed(_SEED)
    mels = next(
        (
            m
            for m in (_integer(audio, n, None) for n in ("num_mel_bins", "n_mels", "input_dim", "input_size"))
            if m
        ),
        80,
    )
    positions = _integer(audio, "max_source_positions", 64)
    if "input_features" in parameters:
        for shape, time in (
            ((BATCH, mels, 2 * positions), 2 * positions),
            ((BATCH, 64, mels), 64),
            ((BATCH, mels, 64), 64),
            ((BATCH, mels, 200), 200),
        ):
            features = torch.randn(shape, generator=generator)
            mask = torch.ones(BATCH, time, dtype=torch.long)
            more = {n: mask for n in ("feature_attention_mask", "input_features_mask") if n in parameters}
            yield {"input_features": features, **more}
            if "input_features_mask" in more:
                yield {"input_features": features, "input_features_mask": mask.bool()}
                yield {"input_features": features}
    if "input_values" in parameters and "pixel_values" not in parameters:
        for samples in ((BATCH, 16000), (BATCH, 1, 16000)):
            yield {"input_values": torch.randn(samples, generator=generator)}


def _token_counts(model: nn.Module, what: str, arguments: dict[str, Any]) -> Iterator[int]:
    """How many places of a row stand for it: as many as the model makes features, else a guess."""
    config: Any = model.config
    for module in model.modules():
        function = getattr(module, f"get_{what}_features", None)
        if function is None:
            continue
        takes = inspect.signature(function).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        given = {name: value for name, value in arguments.items() if name in takes or open_ended}
        try:
            with torch.no_grad():
                features = function(**given)
        except Exception:  # the model's own checks, of any kind: this is no image of its
            continue
        count = _count(features, _integer(config.get_text_config(decoder=True), "hidden_size", 1))
        if count and count % BATCH == 0:
            yield count // BATCH
            break
    for name in (
        "num_image_tokens",
        "image_seq_length",
        "image_seq_len",
        "mm_tokens_per_image",
        "num_query_tokens",
    ):
        if isinstance(getattr(config, name, None), int):
            yield getattr(config, name)
    yield from (0, PATCHES * PATCHES, PATCHES * PATCHES // 4, 2 * PATCHES * PATCHES)


def _count(features: Any, width: int) -> int:
    features = getattr(features, "pooler_output", features)
    if torch.is_tensor(features):
        return features.numel() // width
    if isinstance(features, (list, tuple)):
        return sum(_count(part, width) for part in features)
    return 0


def _sub_config(config: Any, names: tuple[str, ...]) -> Any:
    for part in (config, getattr(config, "thinker_config", None)):
        for name in names:
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return config


def _integer(config: Any, name: str, otherwise: int | None) -> Any:
    value = getattr(config, name, None)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
        value = value[0]
    return value if isinstance(value, int) else otherwise
