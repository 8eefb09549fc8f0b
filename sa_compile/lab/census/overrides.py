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

# "defaults": arguments without which the class's default config can not be made; "config": fields set after
# shrinking; "inputs": "codebooks" for models that take one row of tokens a codebook.
OVERRIDES: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {"config": {"attn_layer_indices": [1]}},
    "BltForCausalLM": {
        "config": {
            "encoder_hash_byte_group_size": [3, 4],
            "encoder_hash_byte_group_vocab": 64,
            "encoder_config": {"hidden_size_global": 64, "intermediate_size": 96},
            "decoder_config": {"hidden_size_global": 64, "intermediate_size": 96},
        }
    },
    "CohereCompassForCausalLM": {
        "config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}}
    },
    "CsmDepthDecoderForCausalLM": {"config": {"num_codebooks": 96, "max_position_embeddings": 96}},
    "DbrxForCausalLM": {
        "config": {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"hidden_size": 64},
        }
    },
    "Dots3NoteForCausalLM": {"config": {"per_layer_config": {2: {"head_dim": 32}}}},
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
    "GraniteMoeHybridForCausalLM": {"config": {"layer_types": ["linear_attention", "full_attention"]}},
    "HrmTextForCausalLM": {"config": {"num_layers_per_stack": None}},
    "Lfm2MoeForCausalLM": {
        "config": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1}
    },
    "Mamba2ForCausalLM": {"config": {"num_heads": 8, "head_dim": 16, "n_groups": 1}},
    "MiniMaxForCausalLM": {"config": {"block_size": 16}},
    "Mistral4ForCausalLM": {"config": {"head_dim": 32}},
    "MusicgenForCausalLM": {"inputs": "codebooks"},
    "MusicgenMelodyForCausalLM": {"inputs": "codebooks"},
    "NemotronForCausalLM": {"config": {"num_key_value_heads": 2}},
    "Qwen4ExpForCausalLM": {
        "config": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        }
    },
    "RecurrentGemmaForCausalLM": {"config": {"num_hidden_layers": 3}},
    "ReformerModelWithLMHead": {"config": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 32]}},
    "xLSTMForCausalLM": {"config": {"qk_dim_factor": 1.0}},
    "XmodForCausalLM": {"config": {"default_language": "en_XX"}},
    "Zamba2ForCausalLM": {
        "config": {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "hybrid_layer_ids": [1, 3],
            "attention_head_dim": 32,
            "attention_hidden_size": 128,
            "mamba_headdim": 16,
        }
    },
    "ZambaForCausalLM": {
        "config": {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "attention_head_dim": 32,
            "attention_hidden_size": 128,
        }
    },
}
