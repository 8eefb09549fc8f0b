"""A default config cut to a megabyte or a few, with the head dims that it really has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

VOCABULARY = 128
FIRST_TOKEN = 16  # of those that stand for text; special tokens lie below
LAYERS = 2
HEADS = 4
WIDTH = 64  # of a model whose head dim is a field of its own
PATCHES = 4  # of an image, a side

# (pattern of a config field's whole name, largest value); the first pattern that matches decides. A field
# that is 0, negative, None or smaller already stays as it is: 0 and -1 switch things off. Head dims of
# attention are in no pattern: they stay.
CAPS: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*|unpadded_vocab_size", VOCABULARY),
    (r"type_vocab_size|max_position_embeddings|n_positions|max_seq_len|model_max_length|context_length", 512),
    (r"original_max_position_embeddings", 512),
    (r"max_source_positions", 64),
    (r"max_target_positions|n_ctx", 512),
    (r"mm_tokens_per_image", 4),
    (
        r"(num_)?(hidden_|decoder_|encoder_)?layers|n_layers?|num_(decoder|encoder)_layers|num_layers_per_stack",
        LAYERS,
    ),
    (r"num_blocks|depth|num_global_layers|(encoder_|qformer_|resampler_)?depth", LAYERS),
    (
        r"num_key_value_heads|num_kv_heads|kv_n_heads|swa_num_key_value_heads|num_query_groups|linear_num_key_heads",
        2,
    ),
    (
        r".*attention_heads|n_heads?|num_heads|.*num_attention_heads|linear_num_(value_)?heads|index_n_heads",
        HEADS,
    ),
    (r"linear_(key_|value_)?head_dim|mamba_head_dim", 16),
    (r"num_local_experts|(moe_)?num_experts|n_routed_experts|num_experts_total", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|topk|top_k_experts", 2),
    (r"n_group|num_expert_group|topk_group", 1),
    (r"zero_expert_num|.*shared_experts", 1),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|.*_rank|hc_lowrank", 16),
    (
        r"sliding_window(_size)?|local_attention|window_size|attention_window_size|local_attention_window_len",
        24,
    ),
    (r"attention_chunk_size", 32),
    (r"index_topk", 16),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"mamba_n_heads|n_mamba_heads", 8),
    (r"mamba_d_head|mamba_headdim", 16),
    (r"mamba_chunk_size|chunk_size", 16),
    (
        r".*_layer_period|.*_layer_interval|layer_group_size|_?sliding_window_pattern|full_attention_interval",
        2,
    ),
    (r"global_attn_every_n_layers", 2),
    (r".*_layer_offset|first_k_dense_replace|num_dense_layers|moe_layer_start_index|moe_layer_end_index", 1),
    (r"max_window_layers", 1),
)
# Fields that hold the model's width, and those that hold the width of its feed-forward layers.
_WIDTHS = (
    r"hidden_size|d_model|n_embd|emb_dim|embed_dim|embedding_dim|hidden_size_global|lru_width|dim|"
    r"word_embed_proj_dim|embedding_size|(input|output)_embedding_size|attention_hidden_size|.*_embed_dim"
)
_FEED_FORWARD = (
    r".*intermediate_size.*|.*ffn_dim|ffn_hidden_size|dim_ff|dff|d_inner|feed_forward_size|.*ffn_hidden_size"
)
FEED_FORWARD = 96
_LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
_HEAD_FIELDS = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    *("attention_heads", "num_decoder_attention_heads"),
)
_HIDDEN_FIELDS = ("embed_dim", "hidden_size", "d_model", "n_embd", "emb_dim", "dim")
_HEAD_DIM_FIELDS = (
    *("head_dim", "kv_channels", "d_kv", "dim_head", "d_head", "attention_head_dim", "v_head_dim"),
    *("qk_nope_head_dim", "attention_head_size"),
)
_TEXT_WIDTHS = (
    *("out_hidden_size", "text_hidden_size", "adapter_in_dim", "output_dim", "llm_hidden_size"),
    "projection_dim",
)
# Fields of a config that describe the saved model and not its architecture.
_IGNORED = frozenset(
    {"model_type", "transformers_version", "architectures", "torch_dtype", "dtype", "_name_or_path"}
)
# (pattern of a special token's field, token); every other special token is 3.
_TOKENS: tuple[tuple[str, int], ...] = (
    (r"(image|im|img|img_context)_(token_id|token_index|patch_id)|media_placeholder_token_id", 4),
    (r"video_token_(id|index)", 5),
    (r"(audio|sound)_token_(id|index)", 6),
    (r"vision_start_token_id|image_(start|begin)_token_id|boi_token_(id|index)", 7),
    (r"vision_end_token_id|image_end_token_id|eoi_token_(id|index)", 8),
)


def shrink(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config (or of a nested one), each cut to its cap; lists with one entry a layer too.

    Two layers (one of each kind), 4 heads of the size they have, a vocabulary of 128. The width is 64 where
    the head dim is a field of its own, and otherwise as wide as 4 heads.
    """
    layers = next((fields[name] for name in _LAYER_FIELDS if isinstance(fields.get(name), int)), 0)
    picked = _pick_layers(fields, layers)
    width = _width(fields)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _IGNORED:
            continue
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            small[name] = value
        elif isinstance(value, dict) and name not in ("id2label", "label2id"):
            small[name] = shrink(value)
        elif isinstance(value, (list, tuple)) and layers > 1 and len(value) == layers:
            small[name] = [value[i] for i in picked]
        elif name in _LAYER_FIELDS and isinstance(value, int):
            small[name] = min(value, len(picked)) if value == layers else min(value, LAYERS)
        else:
            small[name] = _cap(name, value, width)
    if "patch_size" in fields and "window_size" in fields:  # in pixels, not in tokens
        small["window_size"] = fields["window_size"]
    if "model_type" in fields:
        small["model_type"] = fields["model_type"]
    if isinstance(fields.get("per_layer_config"), dict):
        per_layer = {int(layer): value for layer, value in fields["per_layer_config"].items()}
        small["per_layer_config"] = {
            place: shrink(per_layer[layer]) for place, layer in enumerate(picked) if layer in per_layer
        }
    _repair_heads(small, fields)
    _repair_rope(small)
    _repair_tokens(small)
    _repair_image(small)
    _tie_widths(small)
    return small


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((fields[name] for name in names if isinstance(fields.get(name), int)), 0)


def _width(fields: Mapping[str, Any]) -> int:
    """The width of the tiny model: where the head dim is the width over the heads, that of 4 heads."""
    heads, hidden = _first(fields, _HEAD_FIELDS), _first(fields, _HIDDEN_FIELDS)
    if not heads or not hidden:
        return WIDTH
    if fields.get("model_type") != "pixtral" and any(fields.get(name, 0) != 0 for name in _HEAD_DIM_FIELDS):
        return WIDTH
    return min(heads, HEADS) * (hidden // heads)


def _pick_layers(fields: Mapping[str, Any], layers: int) -> list[int]:
    """Indices of the layers to keep: the first of each kind that a per-layer list names, at least two."""
    per_layer = [
        v for v in fields.values() if isinstance(v, (list, tuple)) and layers > 1 and len(v) == layers
    ]
    per_layer = [values for values in per_layer if len(set(map(str, values))) <= 4]
    seen: set[tuple[int, str]] = set()
    picked = []
    for layer in range(layers):
        kinds = {(number, str(values[layer])) for number, values in enumerate(per_layer)}
        if kinds - seen:
            picked.append(layer)
            seen |= kinds
    rest = [layer for layer in range(layers) if layer not in picked]
    return sorted(picked + rest[: max(0, LAYERS - len(picked))])


def _cap(name: str, value: Any, width: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    if re.fullmatch(_WIDTHS, name):
        return width if value > WIDTH else value
    if re.fullmatch(_FEED_FORWARD, name):
        return min(value, FEED_FORWARD)
    for pattern, largest in CAPS:
        if re.fullmatch(pattern, name):
            return min(value, largest)
    return value


def _repair_heads(small: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Head dims that are left to the config, and those of latent attention (every head has its own key)."""
    heads, hidden = _first(fields, _HEAD_FIELDS), _first(fields, _HIDDEN_FIELDS)
    for name in _HEAD_DIM_FIELDS:
        if name in fields and fields[name] is None and heads and hidden:
            small[name] = hidden // heads
    if small.get("kv_lora_rank") and "num_attention_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]


def _repair_rope(fields: dict[str, Any]) -> None:
    """Long RoPE lists factors that belong to more positions than the tiny model has: plain RoPE."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name)
        if isinstance(rope, dict):
            fields[name] = _plain_rope(rope)


def _plain_rope(rope: dict[str, Any]) -> dict[str, Any]:
    if any(isinstance(value, dict) for value in rope.values()):
        return {
            kind: _plain_rope(value) if isinstance(value, dict) else value for kind, value in rope.items()
        }
    if rope.get("rope_type") == "longrope":
        return {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)}
    return dict(rope)


def _repair_tokens(fields: dict[str, Any]) -> None:
    """Special tokens inside the vocabulary, and none among those that stand for text."""
    for name, value in fields.items():
        special = name.endswith(("_token_id", "_index", "_token_index", "image_patch_id"))
        token = next((token for pattern, token in _TOKENS if re.fullmatch(pattern, name)), 3)
        if special and ((isinstance(value, int) and value > 3) or (value is None and token > 3)):
            fields[name] = token


def _repair_image(fields: dict[str, Any]) -> None:
    """Images of 4 by 4 patches, and lists of vision layers that the tiny tower has."""
    size = fields.get("image_size")
    if size and fields.get("patch_size"):
        fields["image_size"] = _times(fields["patch_size"], PATCHES) if _same_kind(size, fields) else size
    for name in ("deepstack_visual_indexes", "fullatt_block_indexes"):
        if fields.get(name):
            fields[name] = list(range(LAYERS))[-len(fields[name]) :]
    if isinstance(fields.get("vision_feature_layer"), (list, tuple)):
        fields["vision_feature_layer"] = [-1] * len(fields["vision_feature_layer"])
    vision = fields.get("vision_config")
    if "image_grid_pinpoints" in fields and isinstance(vision, dict):
        fields["image_grid_pinpoints"] = [[vision["image_size"]] * 2]


def _same_kind(size: Any, fields: Mapping[str, Any]) -> bool:
    return isinstance(size, (list, tuple)) == isinstance(fields["patch_size"], (list, tuple))


def _times(size: Any, factor: int) -> Any:
    return [factor * one for one in size] if isinstance(size, (list, tuple)) else factor * size


def _tie_widths(fields: dict[str, Any]) -> None:
    """Towers make features as wide as the language model."""
    text = fields.get("text_config") or fields.get("llm_config")
    width = _first(text, _HIDDEN_FIELDS) if isinstance(text, dict) else 0
    if not width:
        return
    for part in (fields, *fields.values()):
        if isinstance(part, dict):
            part.update({name: width for name in _TEXT_WIDTHS if isinstance(part.get(name), int)})
            if part.get("embed_dim") and part.get("hidden_size"):  # of Qwen2-VL: tower and language model
                part["hidden_size"] = width
