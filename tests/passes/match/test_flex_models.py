"""transformers with ``attn_implementation="flex_attention"``: the BlockMask comes from a graph of its own."""

import pytest
import torch
from support.graphs import PassesBackend

TOKENS = 150
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def model(name, attention):
    transformers = pytest.importorskip("transformers")
    more = {}
    if name == "Gemma3":
        more = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
    config_class = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, config_class)(**SIZES, **more)
    config._attn_implementation = attention
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name, padded", [("Llama", False), ("Qwen3", True), ("Gemma3", True)])
def test_full_layers_are_sampled(name, padded):
    torch._dynamo.reset()
    tokens = torch.randint(1, 64, (2, TOKENS))
    valid = torch.ones_like(tokens)
    if padded:
        valid[0, :60] = 0
    inputs = {"input_ids": tokens, **({"attention_mask": valid} if padded else {})}
    backend = PassesBackend({"min_seq_len": 64})
    with torch.no_grad():
        expected = model(name, "sdpa")(**inputs).logits
        compiled = torch.compile(model(name, "flex_attention"), backend=backend)
        actual = compiled(**inputs).logits
    rows = valid.bool()
    torch.testing.assert_close(actual[rows], expected[rows], atol=1e-5, rtol=1e-4)
    by_mask = {record.mask: record.outcome for record in backend.records}
    causal = "causal & key_valid" if padded else "causal"
    window = "causal & window(32) & key_valid" if padded else "causal & window(32)"
    assert by_mask == {causal: "sampled", **({window: "kept"} if name == "Gemma3" else {})}
