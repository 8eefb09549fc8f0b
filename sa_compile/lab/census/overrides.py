"""What the generic shrinking can not know: per class, config fields that depend on each other."""

from __future__ import annotations

from typing import Any

# Four layers: the last two read the keys and values of the first two.
_SHARED_KV = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
    "intermediate_size": 96,
    "activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0],
}

_AXIAL = {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 32]}
_COMPASS = {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}}
_QWEN4_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    "attention_hidden_size": 128,
}
# GLM-4V's sections of RoPE are those of half a head; its default config leaves out which half.
_HALF_ROTARY = {"text_config": {"rope_parameters": {"partial_rotary_factor": 0.5}}}

# "defaults": arguments without which the class's default config can not be made; "config": fields set after
# shrinking; "inputs": "codebooks" for models that take one row of tokens a codebook.
OVERRIDES: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {"config": {"attn_layer_indices": [1], "mamba_d_head": 128}},
    "BltForCausalLM": {
        "config": {
            "encoder_hash_byte_group_size": [3, 4],
            "encoder_hash_byte_group_vocab": 64,
            "encoder_config": {"hidden_size_global": 64, "intermediate_size": 96},
            "decoder_config": {"hidden_size_global": 64, "intermediate_size": 96},
        }
    },
    "CohereCompassForCausalLM": {"config": _COMPASS},
    "CohereCompassForConditionalGeneration": {"config": {"text_config": _COMPASS}},
    "CohereCompassTextForSequenceClassification": {"config": _COMPASS},
    "CsmDepthDecoderForCausalLM": {"config": {"num_codebooks": 96, "max_position_embeddings": 96}},
    "DbrxForCausalLM": {
        "config": {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"hidden_size": 64},
        }
    },
    "DoryForCausalLM": {
        "config": {
            "num_hidden_layers": 6,
            "layer_types": [
                *("sliding_attention", "mlp", "full_attention", "mlp"),
                "sliding_attention",
                "mlp",
            ],
            "n_input_layers": 2,
            "n_recurrent_layers": 2,
            "n_output_layers": 2,
        }
    },
    "DeepseekV2ForCausalLM": {"config": {"num_experts_per_tok": 2}},
    "Dots1ForCausalLM": {
        "config": {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 48,
        }
    },
    "FalconH1ForCausalLM": {"config": {"mamba_d_ssm": 64}},
    "Gemma3nForCausalLM": {"config": _SHARED_KV},
    "GraniteMoeHybridForCausalLM": {
        "config": {"layer_types": ["linear_attention", "full_attention"], "mamba_d_head": 128}
    },
    "Gemma4ForConditionalGeneration": {"defaults": {"vision_config": {}}},
    "Gemma4UnifiedForConditionalGeneration": {"defaults": {"vision_config": {}}},
    "Glm46VForConditionalGeneration": {"config": _HALF_ROTARY},
    "Glm4vForConditionalGeneration": {"config": _HALF_ROTARY},
    "Glm4vMoeForConditionalGeneration": {
        "config": {"text_config": {"head_dim": 128, "rope_parameters": {"partial_rotary_factor": 0.5}}}
    },
    "GlmAsrForConditionalGeneration": {"config": {"audio_config": {"intermediate_size": 1024}}},
    "HeliumForCausalLM": {"config": {"hidden_size": 512}},
    "HrmTextForCausalLM": {"config": {"num_layers_per_stack": None}},
    "Lfm2MoeForCausalLM": {
        "config": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1}
    },
    "Mamba2ForCausalLM": {"config": {"num_heads": 8, "head_dim": 16, "n_groups": 1}},
    "Kimi_K25ForConditionalGeneration": {"config": {"vision_config": {"projection_hidden_size": 288}}},
    "Llama4ForConditionalGeneration": {
        "config": {"vision_config": {"intermediate_size": 768, "vision_output_dim": 4096}}
    },
    "MiniMaxForCausalLM": {"config": {"block_size": 16}},
    "MiniMaxForSequenceClassification": {"config": {"block_size": 16}},
    "MllamaForConditionalGeneration": {
        "config": {
            "text_config": {"cross_attention_layers": [1]},
            "vision_config": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 3 * 320},
        }
    },
    "MusicgenForCausalLM": {"inputs": "codebooks"},
    "MusicgenMelodyForCausalLM": {"inputs": "codebooks"},
    "NemotronForCausalLM": {"config": {"num_key_value_heads": 2}},
    "NemotronForSequenceClassification": {"config": {"num_key_value_heads": 2}},
    "Qwen4ExpForCausalLM": {"config": _QWEN4_INDEXER},
    "Qwen4ExpForConditionalGeneration": {"config": {"text_config": _QWEN4_INDEXER}},
    "Qwen2_5OmniThinkerForConditionalGeneration": {"config": {"vision_start_token_id": 7}},
    "Qwen3OmniMoeThinkerForConditionalGeneration": {"config": {"vision_start_token_id": 7}},
    "RecurrentGemmaForCausalLM": {"config": {"num_hidden_layers": 3}},
    "ReformerForSequenceClassification": {"config": _AXIAL},
    "ReformerModelWithLMHead": {"config": _AXIAL},
    "Step3p7ForConditionalGeneration": {"config": {"text_config": {"sliding_window": 24}}},
    "UnlimitedOcrForConditionalGeneration": {"config": {"text_config": {"hidden_size": 512}}},
    "VoxtralForConditionalGeneration": {"config": {"audio_config": {"intermediate_size": 1024}}},
    "XLNetForSequenceClassification": {"config": {"d_model": 256}},
    "XLNetLMHeadModel": {"config": {"d_model": 256}},
    "xLSTMForCausalLM": {"config": {"qk_dim_factor": 1.0, "hidden_size": 64, "embedding_dim": 64}},
    "XmodForCausalLM": {"config": {"default_language": "en_XX"}},
    "Zamba2ForCausalLM": {"config": {**_ZAMBA, "hybrid_layer_ids": [1, 3], "mamba_headdim": 16}},
    "Zamba2ForSequenceClassification": {
        "config": {**_ZAMBA, "hybrid_layer_ids": [1, 3], "mamba_headdim": 16}
    },
    "ZambaForCausalLM": {"config": _ZAMBA},
    "ZambaForSequenceClassification": {"config": _ZAMBA},
}
