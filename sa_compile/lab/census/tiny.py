"""Every causal language model of the installed transformers, with random weights, in a megabyte or less."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from sa_compile.lab.census.overrides import OVERRIDES

VOCABULARY = 128
LAYERS = 2
SEED = 20240615

# (pattern of a config field's whole name, largest value); the first pattern that matches decides. A field
# that is 0, negative, None or smaller already stays as it is: 0 and -1 switch things off.
CAPS: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*|unpadded_vocab_size", VOCABULARY),
    (r"type_vocab_size|max_position_embeddings|n_positions|max_seq_len|model_max_length|context_length", 512),
    (r"original_max_position_embeddings", 512),
    (r"max_(source|target)_positions|n_ctx", 512),
    (
        r"(num_)?(hidden_|decoder_|encoder_)?layers|n_layers?|num_(decoder|encoder)_layers|num_layers_per_stack",
        LAYERS,
    ),
    (r"num_blocks|depth", LAYERS),
    (
        r"num_key_value_heads|num_kv_heads|kv_n_heads|swa_num_key_value_heads|num_query_groups|linear_num_key_heads",
        2,
    ),
    (
        r".*attention_heads|n_heads?|num_heads|.*num_attention_heads|linear_num_(value_)?heads|index_n_heads",
        4,
    ),
    (r"(.*_)?head_dim|dim_head|d_head|kv_channels|linear_head_dim|d_kv|attention_head_size", 16),
    (r"hidden_size|d_model|n_embd|emb_dim|embed_dim|embedding_dim|hidden_size_global|lru_width|dim", 64),
    (
        r"word_embed_proj_dim|embedding_size|(input|output)_embedding_size|attention_hidden_size|.*_embed_dim",
        64,
    ),
    (r"query_pre_attn_scalar", 16),
    (
        r".*intermediate_size.*|.*ffn_dim|ffn_hidden_size|dim_ff|dff|d_inner|feed_forward_size|.*ffn_hidden_size",
        96,
    ),
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
    (r"rotary_dim|attention_head_dim", 16),
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
# Fields of a config that describe the saved model and not its architecture.
_IGNORED = frozenset(
    {"model_type", "transformers_version", "architectures", "torch_dtype", "dtype", "_name_or_path"}
)


def model_names() -> dict[str, str]:
    """Class name -> model type: the auto mapping's causal language models, and any other ``*ForCausalLM``."""
    names: dict[str, str] = {}
    for model_type, class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        names.setdefault(class_name, model_type)
    for class_name in dir(transformers):
        if (
            class_name.endswith("ForCausalLM")
            and not class_name.startswith("AutoModel")
            and class_name not in names
        ):
            names[class_name] = getattr(transformers, class_name).config_class.model_type
    return dict(sorted(names.items(), key=lambda item: item[0].lower()))


def offers_sdpa(class_name: str) -> bool:
    """The class has an SDPA implementation beside the eager one."""
    return getattr(transformers, class_name)._supports_sdpa


def tiny_config(class_name: str, model_type: str) -> Any:
    """The model's default config, shrunk: 2 layers (one of each kind), 4 heads of 16, a vocabulary of 128."""
    model_class = getattr(transformers, class_name)
    config_class = model_class.config_class or CONFIG_MAPPING[model_type]
    override = OVERRIDES.get(class_name, {})
    defaults = config_class(**override.get("defaults", {})).to_dict()
    fields = shrink(defaults)
    _update(fields, override.get("config", {}))
    return config_class(**fields)


def shrink(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config (or of a nested one), each cut to its cap; lists with one entry a layer too."""
    layers = next((fields[name] for name in _LAYER_FIELDS if isinstance(fields.get(name), int)), 0)
    picked = _pick_layers(fields, layers)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _IGNORED:
            continue
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            small[name] = shrink(value)
        elif isinstance(value, (list, tuple)) and layers > 1 and len(value) == layers:
            small[name] = [value[i] for i in picked]
        elif name in _LAYER_FIELDS and isinstance(value, int):
            small[name] = min(value, len(picked)) if value == layers else min(value, LAYERS)
        else:
            small[name] = _cap(name, value)
    if "model_type" in fields:
        small["model_type"] = fields["model_type"]
    if isinstance(fields.get("per_layer_config"), dict):
        per_layer = {int(layer): value for layer, value in fields["per_layer_config"].items()}
        small["per_layer_config"] = {
            place: shrink(per_layer[layer]) for place, layer in enumerate(picked) if layer in per_layer
        }
    _repair_heads(small)
    _repair_rope(small)
    _repair_tokens(small)
    return small


_LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")


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


def _cap(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    for pattern, largest in CAPS:
        if re.fullmatch(pattern, name):
            return min(value, largest)
    return value


def _repair_heads(fields: dict[str, Any]) -> None:
    """Head sizes that are left to the config, and those of latent attention (every head has its own key)."""
    if "head_dim" in fields and fields["head_dim"] is None:
        fields["head_dim"] = 16
    if fields.get("kv_lora_rank") and "num_attention_heads" in fields:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    if fields.get("qk_head_dim") and fields.get("qk_rope_head_dim"):
        fields["qk_head_dim"] = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]


def _repair_rope(fields: dict[str, Any]) -> None:
    """Scaled RoPE lists one factor a frequency of the full-size head; the tiny head takes plain RoPE."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name)
        if isinstance(rope, dict):
            fields[name] = _plain_rope(rope)


def _plain_rope(rope: dict[str, Any]) -> dict[str, Any]:
    if any(isinstance(value, dict) for value in rope.values()):
        return {
            kind: _plain_rope(value) if isinstance(value, dict) else value for kind, value in rope.items()
        }
    plain = dict(rope)
    if "mrope_section" in plain:
        plain["mrope_section"] = [2, 3, 3]
    if plain.get("rope_type") == "longrope":
        plain = {"rope_type": "default", "rope_theta": plain.get("rope_theta", 10000.0)}
    return plain


def _repair_tokens(fields: dict[str, Any]) -> None:
    """Special tokens inside the vocabulary, and none among those that the census draws (4 and up)."""
    for name, value in fields.items():
        if name.endswith(("_token_id", "_index", "_token_index")) and isinstance(value, int) and value > 3:
            fields[name] = 3


def _update(fields: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(fields.get(name), dict):
            _update(fields[name], value)
        else:
            fields[name] = value


def build(class_name: str, model_type: str, attn: str) -> nn.Module:
    """The tiny model in eval mode and fp32, the same weights for every ``attn`` (an ``attn_implementation``).

    Raises ``NotImplementedError`` when the class does not offer that implementation under its own name.
    """
    model_class = getattr(transformers, class_name)
    config = tiny_config(class_name, model_type)
    if attn == "sdpa" and not offers_sdpa(class_name):
        raise NotImplementedError("the class does not support SDPA")
    for part in (config, config.get_text_config(decoder=True)):
        if hasattr(part, "is_decoder") and not hasattr(part, "encoder_layers"):
            part.is_decoder = True
    config._attn_implementation = attn
    torch.manual_seed(SEED)
    model = model_class(config).to(torch.float32).eval()
    fill(model)
    return model


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Weights large enough that attention shows in the logits: a wrong mask must not hide behind a zero.

    Linear layers get a standard deviation of ``1/sqrt(inputs)``; parameters created constant (zeros,
    ones) get noise on top.
    """
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            inputs = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
            module.weight.normal_(0, inputs**-0.5, generator=generator)
    for parameter in model.parameters():
        if not parameter.is_floating_point() or parameter.numel() < 2:
            continue
        if not bool(parameter.isfinite().all()) or float(parameter.max() - parameter.min()) == 0:
            constant = parameter.flatten()[0].nan_to_num(0.0, 0.0, 0.0)
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(constant + 0.1 * noise)
