"""Options, report and stats of ``attn_implementation="sampleattn"``."""

import copy
import json
import pickle

import pytest
import torch
from support.models import LOSSLESS, SMALL_BLOCKS, tiny_llama
from support.profiles import model_of, write_profile
from transformers import AutoModelForCausalLM

import sa_compile
import sa_compile.hf

SPARSE = {**SMALL_BLOCKS, "method": "chunked", "alpha_c": 0.2, "alpha_s": 0.2}


@pytest.fixture
def model():
    return tiny_llama(attn_implementation="sampleattn")


@torch.no_grad()
def test_without_options_the_defaults_hold(model, tokens):
    model(tokens)
    (row, _) = sa_compile.hf.report(model).sites
    assert row.outcome == "exact" and "shorter than min_seq_len (4096)" in row.reason


@torch.no_grad()
def test_options_may_change_between_calls(model, tokens):
    sa_compile.hf.configure(model, LOSSLESS)
    model(tokens)
    sa_compile.hf.configure(model)
    model(tokens)
    assert [site.outcome for site in sa_compile.hf.report(model).sites] == ["sampled"] * 2 + ["exact"] * 2
    sa_compile.hf.reset_report(model)
    assert sa_compile.hf.report(model).sites == ()


@torch.no_grad()
def test_two_models_follow_their_own_options(tokens):
    first, second = (tiny_llama(attn_implementation="sampleattn") for _ in range(2))
    sa_compile.hf.configure(first, LOSSLESS)
    sa_compile.hf.configure(second, SPARSE)
    tokens = tokens.repeat(1, 4)
    expected = tiny_llama()(tokens).logits
    torch.testing.assert_close(first(tokens).logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(second(tokens).logits, expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_keeps_the_options(model, tokens, copied):
    sa_compile.hf.configure(model, SPARSE)
    expected = model(tokens).logits
    assert torch.equal(copied(model)(tokens).logits, expected)


@torch.no_grad()
def test_a_saved_model_keeps_the_options(model, tokens, tmp_path):
    sa_compile.hf.configure(model, SPARSE)
    expected = model(tokens).logits
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["sampleattn"] == SPARSE
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sampleattn")
    assert torch.equal(loaded(tokens).logits, expected)


@torch.no_grad()
def test_the_report_has_a_row_for_each_way_an_attention_ran(model, tokens):
    sa_compile.hf.configure(model, LOSSLESS)
    model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)
    report = sa_compile.hf.report(model)
    assert "model.layers.{0-1}.self_attn" in str(report)
    assert "4 sites: 2 sampled, 0 exact, 2 kept" in str(report)
    decode = report.sites[-1]
    assert (decode.reason, decode.q_len, decode.kv_len) == ("decode: one query row", 1, "65-67")
    assert json.loads(report.to_json())["options"]["peak"] == 0.0
    assert report.graphs == ()


@torch.no_grad()
def test_stats_are_gathered_beside_those_of_compiled_models(model, tokens):
    sa_compile.reset_stats()
    sa_compile.hf.configure(model, {**SPARSE, "stats": True})
    for _ in range(2):
        model(tokens)
    sites = [site for site in sa_compile.stats().sites if site.calls]
    assert [site.module_path for site in sites] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert all(site.calls == 2 and len(site.density) == 4 for site in sites)
    assert sa_compile.hf.report(model).stats().sites == tuple(sites)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"alpha": 1}, ValueError, "unknown option 'alpha'", id="unknown"),
        pytest.param({"alpha_c": 2.0}, ValueError, r"'alpha_c' must be in \(0, 1\]", id="range"),
        pytest.param({"inner": "eager"}, ValueError, "'inner' needs torch.compile", id="compilers-only"),
        pytest.param({"trace": "x"}, ValueError, "'trace' needs torch.compile", id="trace"),
    ],
)
def test_errors_name_the_option(model, options, error, message):
    with pytest.raises(error, match=message):
        sa_compile.hf.configure(model, options)


def test_a_module_without_a_config_is_refused():
    with pytest.raises(TypeError, match="needs a transformers model"):
        sa_compile.hf.configure(torch.nn.Linear(2, 2), LOSSLESS)


@torch.no_grad()
@pytest.mark.parametrize("method", ["chunked", "stride", "adaptive"])
def test_every_method_gives_what_the_compiled_model_gives(model, tokens, method):
    options = {**SPARSE, "method": method}
    sa_compile.hf.configure(model, options)
    compiled = torch.compile(tiny_llama(), backend="sampleattn", options={**options, "inner": "eager"})
    torch.testing.assert_close(model(tokens).logits, compiled(tokens).logits, atol=1e-5, rtol=1e-4)
    assert {site.outcome for site in sa_compile.hf.report(model).sites} == {"sampled"}


@torch.no_grad()
def test_a_profile_sets_the_options_of_each_range(model, tmp_path):
    known = model_of(tiny_llama(), torch.arange(64)[None])
    ranges = [(32, 79, {"block_q": 16, "block_k": 16, "alpha_c": 0.3}), (80, None, None)]
    sa_compile.hf.configure(model, {"profile": write_profile(tmp_path / "profile.json", known, ranges)})
    for length in (31, 32, 80):
        model(torch.arange(length)[None])
    rows = sa_compile.hf.report(model).sites
    assert [(row.q_len, row.outcome, row.profile_range) for row in rows[::2]] == [
        (31, "exact", ""),
        (32, "sampled", "32 to 79"),
        (80, "exact", ""),
    ]


def test_a_profile_of_another_model_is_refused(model, tmp_path):
    known = model_of(tiny_llama(), torch.arange(64)[None])
    file = write_profile(
        tmp_path / "profile.json", {**known, "model_class": "GPT2LMHeadModel"}, [(32, None, None)]
    )
    with pytest.raises(ValueError, match="GPT2LMHeadModel"):
        sa_compile.hf.configure(model, {"profile": file})
