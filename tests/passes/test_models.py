"""Models of transformers, as small as they get: what becomes of their attention, with alpha = 1."""

import logging

import pytest
import torch
import transformers
from support.graphs import PassesBackend
from transformers import AutoConfig, AutoModelForCausalLM

LENGTH, VOCABULARY = 72, 64
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_GROUPS = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}
WINDOW = {"sliding_window": 24}
HEADS_OF_16 = {**DECODER, "head_dim": 16}
LATENT = {
    **DECODER,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 2,
}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def build(model_type, options, implementation):
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    config = AutoConfig.for_model(model_type, **options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    logging.disable(logging.NOTSET)
    return model.eval()


def run(model, tolerance=1e-5, dynamic=None, options=None, **inputs):
    """Logits of the compiled and of the uncompiled model agree; the backend with what it saw."""
    ids = torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    backend = PassesBackend(options or {})
    with torch.no_grad():
        expected = model(ids, **inputs).logits
        actual = torch.compile(model, backend=backend, dynamic=dynamic)(ids, **inputs).logits
    assert (actual - expected).norm() <= tolerance * expected.norm()
    return backend


def padding():
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[0, :9] = 0
    return mask


PLAIN = [
    pytest.param("llama", DECODER, "sdpa", id="llama"),
    pytest.param("llama", DECODER, "eager", id="llama eager"),
    pytest.param("gpt_neox", NO_GROUPS, "sdpa", id="gpt_neox"),
    pytest.param("gpt_neox", NO_GROUPS, "eager", id="gpt_neox eager"),
    pytest.param("falcon", NO_GROUPS, "sdpa", id="falcon"),
    pytest.param("falcon", NO_GROUPS, "eager", id="falcon eager"),
    pytest.param("gpt2", GPT2, "eager", id="gpt2 eager"),
    pytest.param("deepseek_v3", LATENT, "sdpa", id="deepseek_v3: latent attention"),
    pytest.param("deepseek_v3", LATENT, "eager", id="deepseek_v3 eager"),
]


@pytest.mark.parametrize(
    "inputs, mask",
    [
        pytest.param({}, "causal", id="cache"),
        pytest.param({"attention_mask": padding()}, "causal & key_valid", id="left padding"),
    ],
)
@pytest.mark.parametrize("model_type, options, implementation", PLAIN)
def test_plain_causal_model_is_sampled(model_type, options, implementation, inputs, mask):
    backend = run(build(model_type, options, implementation), **inputs)
    assert backend.outcomes == [("sampled", "sampled")] * 2
    assert {record.mask for record in backend.records} == {mask}
    assert backend.score_shaped() == []


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({"use_cache": False}, id="no cache: packed positions"),
        pytest.param({"attention_mask": torch.ones(2, LENGTH, dtype=torch.int64)}, id="mask of ones"),
    ],
)
def test_llama_under_dynamic_shapes(implementation, inputs):
    backend = run(build("llama", DECODER, implementation), dynamic=True, **inputs)
    assert backend.outcomes == [("sampled", "sampled")] * 2
    assert backend.score_shaped() == []


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_short_prompt_is_exact(implementation):
    backend = run(build("llama", DECODER, implementation), options={"min_seq_len": 4096}, use_cache=False)
    assert backend.outcomes == [("exact", "sdpa_causal")] * 2
    assert backend.score_shaped() == []


def static_cache(model):
    return transformers.StaticCache(config=model.config, max_cache_len=100)


def first_chunk(model):
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.ones(2, 40, dtype=torch.int64), past_key_values=cache)
    return cache


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "cache, inputs, mask",
    [
        pytest.param(static_cache, {}, "causal", id="static"),
        pytest.param(static_cache, {"attention_mask": padding()}, "causal & key_valid", id="static, padded"),
        pytest.param(first_chunk, {}, "causal(offset=40)", id="second chunk"),
    ],
)
def test_prefill_into_a_cache_is_sampled(implementation, cache, inputs, mask):
    model = build("llama", DECODER, implementation)
    ids = torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    backend = PassesBackend()
    with torch.no_grad():
        expected = model(ids, past_key_values=cache(model), **inputs).logits
        past = cache(model)
        actual = torch.compile(model, backend=backend)(ids, past_key_values=past, **inputs).logits
    assert (actual - expected).norm() <= 1e-5 * expected.norm()
    assert backend.outcomes == [("sampled", "sampled")] * 2
    assert {record.mask for record in backend.records} == {mask}
    assert backend.score_shaped() == []


OTHER_MASKS = [
    pytest.param("mistral", {**DECODER, **WINDOW}, "sdpa", "causal & window(24)", id="mistral"),
    pytest.param("mistral", {**DECODER, **WINDOW}, "eager", "causal & window(24)", id="mistral eager"),
    pytest.param("gemma3_text", {**HEADS_OF_16, **WINDOW}, "sdpa", "causal & window(24)", id="gemma3"),
]


@pytest.mark.parametrize("model_type, options, implementation, mask", OTHER_MASKS)
def test_window_is_exact_and_block_sparse(model_type, options, implementation, mask):
    backend = run(build(model_type, options, implementation))
    assert set(backend.outcomes) == {("exact", "block_sparse")}
    assert {record.mask for record in backend.records} == {mask}
    assert backend.score_shaped() == []


SINKS = [
    pytest.param("gpt_oss", EXPERTS, id="gpt_oss"),
    pytest.param("granite_swa", {}, id="granite_swa"),
    pytest.param("mimo_v2_flash", {}, id="mimo_v2_flash"),
]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    "inputs, valid",
    [
        pytest.param({}, "", id="cache"),
        pytest.param({"attention_mask": padding()}, " & key_valid", id="left padding"),
    ],
)
@pytest.mark.parametrize("model_type, options", SINKS)
def test_sinks_are_computed_with_the_attention(model_type, options, inputs, valid, dynamic):
    model = build(model_type, {**HEADS_OF_16, **WINDOW, **options}, "eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_(0.0, 2.0)
    backend = run(model, dynamic=dynamic, **inputs)
    assert set(backend.outcomes) == {("sampled", "sampled"), ("exact", "block_sparse")}
    masks = {record.form: record.mask for record in backend.records}
    assert masks == {"sampled": "causal" + valid, "block_sparse": "causal & window(24)" + valid}
    assert any(record.spelling == "eager with sinks" for record in backend.records)
    assert backend.score_shaped() == []


KEPT = [
    pytest.param("gemma2", {**HEADS_OF_16, **WINDOW}, "tanh softcap", id="gemma2: softcap"),
    pytest.param("bloom", BLOOM, "ALiBi", id="bloom: ALiBi"),
]


@pytest.mark.parametrize("model_type, options, reason", KEPT)
def test_what_is_more_than_attention_is_kept(model_type, options, reason):
    backend = run(build(model_type, options, "eager"), tolerance=0.0)
    assert set(backend.outcomes) == {("kept", "")}
    assert all(reason in record.reason for record in backend.records)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bert_is_kept(implementation):
    config = transformers.BertConfig(**NO_GROUPS)
    model = transformers.BertForMaskedLM._from_config(config, attn_implementation=implementation).eval()
    for inputs in ({}, {"attention_mask": padding()}):
        torch._dynamo.reset()
        backend = run(model, tolerance=0.0, **inputs)
        assert set(backend.outcomes) <= {("kept", ""), ("exact", "sdpa_full")}
        assert inputs == {} or {record.reason for record in backend.records} == {
            "bidirectional attention with a mask"
        }


def test_t5_is_kept():
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    backend = run(model, tolerance=0.0, decoder_input_ids=torch.ones(2, 40, dtype=torch.int64))
    assert len(backend.records) == 6
    assert {record.outcome for record in backend.records} == {"kept"}


def test_module_path_names_the_layer():
    backend = run(build("llama", DECODER, "sdpa"))
    assert [record.module_path for record in backend.records] == [
        f"model.layers.{i}.self_attn" for i in range(2)
    ]
