"""Which models are out of SampleAttention's reach by their own design, and why."""

from __future__ import annotations

_INDEXER = "a learned indexer picks the keys of each query"
_SINKS = "attention sinks: an extra logit in the softmax"
_SOFTCAP = "softcap: tanh of the scores"
RECURRENT = "recurrent: no attention"
_RELATIVE = "a learned relative position bias is added to the scores"

# A model's attention is *plain causal* when every attention layer is softmax(scale * q k^T + mask) v and the
# mask is a function of positions, padding and packed sequences: causal, window, chunks. These are not.
NOT_PLAIN: dict[str, str] = {
    "AXK2ForCausalLM": _INDEXER,
    "BltForCausalLM": "byte patches of learned lengths; bytes and patches attend to each other",
    "BloomForCausalLM": "ALiBi: a bias that falls with distance",
    "CpmAntForCausalLM": _RELATIVE,
    "DeepseekV32ForCausalLM": _INDEXER,
    "DeepseekV4ForCausalLM": _SINKS + "; " + _INDEXER,
    "DogeForCausalLM": "dynamic mask: a learned bias on the keys",
    "Dots3NoteForCausalLM": _INDEXER,
    "FalconMambaForCausalLM": RECURRENT,
    "FlintForCausalLM": _SINKS,
    "Gemma2ForCausalLM": _SOFTCAP,
    "GlmMoeDsaForCausalLM": _INDEXER,
    "GptOssForCausalLM": _SINKS,
    "GraniteMoeSWAForCausalLM": _SINKS,
    "GraniteSWAForCausalLM": _SINKS,
    "HYV4ForCausalLM": _SINKS + "; " + _INDEXER,
    "Inkling2ForCausalLM": _RELATIVE,
    "InklingForCausalLM": _RELATIVE,
    "Mamba2ForCausalLM": RECURRENT,
    "MambaForCausalLM": RECURRENT,
    "MiMoV2FlashForCausalLM": _SINKS,
    "MiniMaxM3VLForCausalLM": _INDEXER,
    "MptForCausalLM": "ALiBi: a bias that falls with distance",
    "ProphetNetForCausalLM": "n-gram streams with a relative position bias",
    "Qwen4ExpForCausalLM": _INDEXER,
    "ReformerModelWithLMHead": "attention between keys of the same hash bucket",
    "RwkvForCausalLM": RECURRENT,
    "VaultGemmaForCausalLM": _SOFTCAP,
    "XLMWithLMHeadModel": "bidirectional unless its config says otherwise",
    "XLNetLMHeadModel": "relative position scores, bidirectional",
    "xLSTMForCausalLM": RECURRENT,
}
