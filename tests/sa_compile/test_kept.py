"""Attention that is more than causal is kept: to the bit what Inductor gives, with the reason."""

import pytest
import torch
import transformers

from sa_compile import report

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
CAUSAL = {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
ENCODER_DECODER = {"vocab_size": 64, "d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}
DECODER_TOKENS = {"decoder_input_ids": torch.ones(2, 40, dtype=torch.long)}


def left_padding():
    mask = torch.ones(2, 72, dtype=torch.long)
    mask[1, :11] = 0
    return {"attention_mask": mask}


KEPT = [
    pytest.param(
        "BertModel", SIZES, left_padding(), ["bidirectional attention with a mask"], id="bidirectional"
    ),
    pytest.param("Gemma2ForCausalLM", CAUSAL, {}, ["tanh softcap"], id="softcap"),
    pytest.param(
        "BloomForCausalLM",
        {"vocab_size": 64, "hidden_size": 64, "n_layer": 1, "n_head": 4},
        {},
        ["ALiBi"],
        id="alibi",
    ),
    pytest.param(
        "T5ForConditionalGeneration",
        {**ENCODER_DECODER, "decoder_start_token_id": 0},
        DECODER_TOKENS,
        ["bias", "bias", "bidirectional attention, nothing masked"],
        id="relative-bias-and-cross-attention",
    ),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "sizes", "inputs", "reasons"), KEPT)
def test_kept_attention_is_inductors_to_the_bit(name, sizes, inputs, reasons):
    torch.manual_seed(0)
    model = getattr(transformers, name)
    model = model(model.config_class(**sizes, attn_implementation="eager")).eval()
    tokens = torch.randint(3, 64, (2, 72))
    expected = torch.compile(model, backend="inductor")(tokens, **inputs)[0]
    torch._dynamo.reset()
    with report.collect() as reports:
        actual = torch.compile(model, backend="sampleattn", options={"min_seq_len": 1})(tokens, **inputs)[0]
    assert torch.equal(actual, expected)
    sites = [site for graph in reports for site in graph.sites]
    assert {site.outcome for site in sites} == {"kept"}
    for site, reason in zip(sites, reasons, strict=True):
        assert reason in site.reason
