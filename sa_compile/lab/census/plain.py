"""Which models are out of SampleAttention's reach by their own design, and why."""

from __future__ import annotations

from typing import Any

_INDEXER = "a learned indexer picks the keys of each query"
_SOFTCAP = "softcap: tanh of the scores"
_TOKEN_SINKS = "a sink for each token, and a learned relative position bias"
RECURRENT = "recurrent: no attention"
_RELATIVE = "a learned relative position bias is added to the scores"

# A model's attention is *plain causal* when every attention layer of its language model is
# softmax(scale * q k^T + mask) v, or that with sinks (one logit a head in the softmax), and the mask is a
# function of positions, padding and packed sequences: causal, window, chunks. The models of these types
# (of the language model's config) are not.
NOT_PLAIN: dict[str, str] = {
    "axk2": _INDEXER,
    "bloom": "ALiBi: a bias that falls with distance",
    "blt": "byte patches of learned lengths; bytes and patches attend to each other",
    "cpmant": _RELATIVE,
    "deepseek_v32": _INDEXER,
    "deepseek_v4": _INDEXER,
    "doge": "dynamic mask: a learned bias on the keys",
    "dots3_note_text": _INDEXER,
    "falcon_mamba": RECURRENT,
    "gemma2": _SOFTCAP,
    "glm5_next_text": _INDEXER,
    "glm_moe_dsa": _INDEXER,
    "hy_v4": _INDEXER,
    "hy_v4_vl_text": _INDEXER,
    "inkling2_loop_text": _TOKEN_SINKS,
    "inkling2_text": _TOKEN_SINKS,
    "inkling_text": _RELATIVE,
    "mamba": RECURRENT,
    "mamba2": RECURRENT,
    "minimax_m3_vl_text": _INDEXER,
    "mpt": "ALiBi: a bias that falls with distance",
    "prophetnet": "n-gram streams with a relative position bias",
    "qwen4_exp_text": _INDEXER,
    "reformer": "attention between keys of the same hash bucket",
    "rwkv": RECURRENT,
    "vaultgemma": _SOFTCAP,
    "xlstm": RECURRENT,
}
# Classes whose processors mark an image's tokens, which then see each other both ways.
IMAGES_BOTH_WAYS = frozenset(
    {
        "Gemma3ForConditionalGeneration",
        "Gemma4ForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration",
        "GitForCausalLM",
    }
)


def why_not_plain(record: dict[str, Any]) -> str | None:
    """Why the attention of a record's model is not plain causal, by design or as measured; None if it is."""
    if record.get("text_type") in NOT_PLAIN:
        return NOT_PLAIN[record["text_type"]]
    if record["model"] in IMAGES_BOTH_WAYS:
        return "an image's tokens see each other both ways"
    if record.get("causal", True) is None:
        return "an encoder and a decoder"
    if not record.get("causal", True):
        return "bidirectional: a later token changes what stands before it (measured)"
    return None
