"""``attn_implementation="sampleattn"`` against transformers' own attention: the same logits, or sampled."""

import pytest
import torch
import transformers
from support.models import LOSSLESS, SMALL_BLOCKS
from transformers import DynamicCache, StaticCache

import sa_compile
import sa_compile.hf

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def pair(name="Llama", options=LOSSLESS, reference="sdpa", **sizes):
    """The same random model with our attention and with transformers'."""
    models = []
    for implementation in ("sampleattn", reference):
        torch.manual_seed(0)
        kind = getattr(transformers, name if "Model" in name else f"{name}ForCausalLM")
        config = kind.config_class(**{**SIZES, **sizes})
        config._attn_implementation = implementation
        models.append(kind(config).eval())
    sa_compile.hf.configure(models[0], options)
    return models


def tokens(batch=1, length=64):
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(1))


def padding(*valid, length=64, side="left"):
    mask = torch.tensor([[0] * (length - n) + [1] * n for n in valid])
    return mask if side == "left" else mask.flip(1)


def rows(model):
    return {(site.outcome, site.form, site.reason) for site in sa_compile.hf.report(model).sites}


def outcomes(model):
    return {site.outcome for site in sa_compile.hf.report(model).sites}


@torch.no_grad()
@pytest.mark.parametrize(
    ("inputs", "form"),
    [
        pytest.param({}, "sampled", id="prompt"),
        pytest.param({"use_cache": False}, "sampled", id="no-cache"),
        pytest.param({"attention_mask": padding(64, 64)}, "sampled", id="mask-of-ones"),
        pytest.param({"attention_mask": padding(64, 30)}, "sampled", id="left-padding"),
        pytest.param({"attention_mask": padding(64, 30, side="right")}, "sampled", id="right-padding"),
        pytest.param(
            {"attention_mask": torch.ones(64, 64).tril().bool()[None, None].expand(2, -1, -1, -1)},
            "",
            id="a-users-4-D-mask",
        ),
        pytest.param(
            {"position_ids": torch.arange(64)[None] % 20, "use_cache": False}, "", id="packed-sequences"
        ),
    ],
)
def test_with_every_block_kept_the_logits_are_sdpas(inputs, form):
    ours, sdpa = pair()
    valid = inputs["attention_mask"].bool() if inputs.get("attention_mask", torch.ones(1)).ndim == 2 else ...
    actual, expected = (model(tokens(2), **inputs).logits for model in (ours, sdpa))
    torch.testing.assert_close(actual[valid], expected[valid], **CLOSE)
    assert {site.form for site in sa_compile.hf.report(ours).sites} == {form}


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "left-padded"])
def test_chunked_prefill_and_decode_with_a_cache(cache, padded):
    ours, sdpa = pair()
    mask = padding(100, 41, length=100) if padded else torch.ones(2, 100, dtype=torch.long)
    ids = tokens(2, 100)
    logits = []
    for model in (ours, sdpa):
        memory = DynamicCache(config=model.config)
        if cache == "static":
            memory = StaticCache(config=model.config, max_cache_len=128)
        begin, parts = 0, []
        for end in (40, 80, 99, 100):
            part = model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=memory)
            parts.append(part.logits)
            begin = end
        logits.append(torch.cat(parts, 1)[mask.bool()])
    torch.testing.assert_close(*logits, **CLOSE)
    assert ("exact", "block_sparse", "shorter than min_seq_len (32)") in rows(ours)
    assert {"sampled", "exact", "kept"} == outcomes(ours)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("chunk", [None, 40], ids=["whole", "chunks"])
@pytest.mark.parametrize("lengths", [[70], [70, 33, 52]], ids=["one-prompt", "left-padded-batch"])
def test_generate(cache, chunk, lengths):
    ours, sdpa = pair()
    mask = padding(*lengths, length=70)
    settings = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    if chunk:
        settings["prefill_chunk_size"] = chunk
    found = [
        m.generate(tokens(len(lengths), 70) * mask, attention_mask=mask, **settings) for m in (ours, sdpa)
    ]
    assert torch.equal(*found)
    assert "sampled" in outcomes(ours)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "sizes", "reference", "expected"),
    [
        pytest.param("Mistral", {"sliding_window": 24}, "sdpa", {"window(24)"}, id="sliding-window"),
        pytest.param("Mistral", {"sliding_window": 4096}, "sdpa", {"q_len >= min"}, id="window-not-reached"),
        pytest.param("Gemma2", {}, "eager", {"tanh softcap"}, id="softcap"),
        pytest.param("Qwen2", {}, "sdpa", {"q_len >= min"}, id="plain"),
        pytest.param(
            "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4}, "sdpa", {"q_len >= min"}, id="gpt2"
        ),
    ],
)
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "left-padded"])
def test_other_models_are_sampled_exact_or_left_with_a_reason(name, sizes, reference, expected, padded):
    ours, theirs = pair(name, reference=reference, **sizes)
    mask = padding(64, 40) if padded else torch.ones(2, 64, dtype=torch.long)
    actual, wanted = (m(tokens(2), attention_mask=mask).logits[mask.bool()] for m in (ours, theirs))
    torch.testing.assert_close(actual, wanted, **CLOSE)
    reasons = " ".join(site.reason for site in sa_compile.hf.report(ours).sites)
    assert all(part in reasons for part in expected)


@torch.no_grad()
def test_an_encoder_decoder_keeps_what_is_not_causal():
    sizes = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
    sizes |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 96}
    models = []
    for implementation in ("sampleattn", "sdpa"):
        torch.manual_seed(0)
        config = transformers.BartConfig(**sizes)
        config._attn_implementation = implementation
        models.append(transformers.BartModel(config).eval())
    sa_compile.hf.configure(models[0], LOSSLESS)
    inputs = {"attention_mask": padding(64, 40), "decoder_input_ids": tokens(2, 50)}
    actual, expected = (m(tokens(2), **inputs).last_hidden_state for m in models)
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert outcomes(models[0]) == {"sampled", "kept"}


def test_training_is_sdpa():
    ours, sdpa = pair()
    for model in (ours, sdpa):
        model.train()
        model(tokens(2), attention_mask=padding(64, 40)).logits.square().mean().backward()
    for (name, actual), expected in zip(ours.named_parameters(), sdpa.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name, atol=1e-6, rtol=1e-3)
    assert rows(ours) == {("kept", "", "training: the block-sparse op has no gradient")}


@torch.no_grad()
def test_a_mask_that_a_model_changed_is_the_one_that_counts():
    ours, sdpa = pair()
    logits = []
    for model in (ours, sdpa):

        def forbid(module, args, kwargs):
            mask = kwargs["attention_mask"]
            mask[..., 5:, 3] = False
            return args, kwargs

        model.model.layers[0].register_forward_pre_hook(forbid, with_kwargs=True)
        mask = padding(64, 40)
        logits.append(model(tokens(2), attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(*logits, **CLOSE)
    assert "may have changed them" in next(iter(rows(ours)))[2]


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "left-padded"])
@pytest.mark.parametrize("method", ["chunked", "stride"])
def test_what_is_kept_is_what_the_compiled_model_keeps(method, padded):
    options = {**SMALL_BLOCKS, "alpha_c": 0.5, "alpha_s": 0.3, "method": method, "stats": True}
    options |= {"last_rows": 0} if method == "chunked" else {}
    ours, sdpa = pair(options=options)
    inputs = {"attention_mask": padding(256, 200, length=256)} if padded else {}
    actual = ours(tokens(2, 256), **inputs).logits
    report = sa_compile.explain(sdpa, tokens(2, 256), options=options, **inputs)
    compiled = torch.compile(sdpa, backend="sampleattn", options={**options, "inner": "eager"})
    torch.testing.assert_close(actual, compiled(tokens(2, 256), **inputs).logits, **CLOSE)
    stats = sa_compile.hf.report(ours).stats()
    assert stats.density < 0.95
    for here, there in zip(stats.sites, report.stats().sites, strict=True):
        assert here.module_path == there.module_path
        assert here.density == pytest.approx(there.density, abs=1e-3)
        assert here.cra_min == pytest.approx(there.cra_min, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_casts_what_sdpa_would_cast(name, dtype):
    ours, sdpa = pair(name)
    exact = sdpa(tokens(2)).logits
    with torch.autocast("cpu", dtype):
        actual, theirs = ours(tokens(2)).logits, sdpa(tokens(2)).logits
    assert actual.dtype == theirs.dtype
    assert (actual - exact).norm() <= 1.1 * (theirs - exact).norm()
    sites = sa_compile.hf.report(ours).sites
    assert {(site.outcome, site.dtype) for site in sites} == {("sampled", str(dtype).removeprefix("torch."))}


@torch.no_grad()
@pytest.mark.filterwarnings("error:attn_implementation")
def test_under_our_backend_it_is_rewritten_like_sdpa():
    ours, sdpa = pair()
    report = sa_compile.explain(ours, tokens(), options=LOSSLESS)
    assert [site.outcome for site in report.sites] == ["sampled", "sampled"]
    mask = padding(64, 40)
    compiled = torch.compile(ours, backend="sampleattn", options={**LOSSLESS, "inner": "eager"})
    actual = compiled(tokens(2), attention_mask=mask).logits
    torch.testing.assert_close(
        actual[mask.bool()], sdpa(tokens(2), attention_mask=mask).logits[mask.bool()], **CLOSE
    )


@torch.no_grad()
def test_under_another_backend_it_is_sdpa_and_says_so():
    ours, sdpa = pair()
    with pytest.warns(UserWarning, match="samples nothing inside torch.compile"):
        actual = torch.compile(ours, backend="aot_eager", fullgraph=True)(tokens()).logits
    torch.testing.assert_close(actual, sdpa(tokens()).logits, **CLOSE)
