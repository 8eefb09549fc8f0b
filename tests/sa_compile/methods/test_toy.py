"""A new selection rule is one module: once registered it is an option, is compiled, reported and measured."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.models import SMALL_BLOCKS, tiny_llama

import sa_compile
from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig, selection_options
from sa_compile.kernels.shared.blocks import popcount, unpack_bits
from sa_compile.lab.eval.rules import parse_rule
from sa_compile.late.attention import config_of, options_text
from sa_compile.methods import METHODS, register

OPTIONS = {**SMALL_BLOCKS, "method": "peaks", "height": 0.4, "peak_rows": 4}


@pytest.fixture(autouse=True)
def toy():
    """The method of toy.py, for one test."""
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "toy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    register(module.Peaks())
    yield module
    del METHODS["peaks"]


def tensors():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 160, 16, generator=generator)
    key, value = torch.randn(2, 1, 2, 160, 16, generator=generator)
    key[:, :, ::37] *= 6
    return query, key, value


def kept_blocks(query, key, value):
    attention = prefill.CausalAttention(query, key, value, 16**-0.5)
    return prefill.keep(attention, SampleAttentionConfig(**OPTIONS)).block_mask


def attention(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def test_its_options_are_taken_and_checked():
    config = SampleAttentionConfig(**OPTIONS)
    assert (config.method, config.height, config.peak_rows, config.window_blocks) == ("peaks", 0.4, 4, 2)
    assert {"height", "peak_rows", "tau"} <= set(selection_options(config))
    for name, value, allowed in (("height", 2, r"in \[0, 1\]"), ("peak_rows", 3, "a power of two")):
        with pytest.raises(ValueError, match=f"'{name}' must be {allowed}, got {value}"):
            SampleAttentionConfig.from_options({"method": "peaks", name: value})
    with pytest.raises(ValueError, match="unknown option 'height'.*known options: method"):
        SampleAttentionConfig.from_options({"height": 0.4})
    with pytest.warns(UserWarning, match="tau=0.3 has no effect with method='peaks'.*'adaptive'"):
        SampleAttentionConfig.from_options({"method": "peaks", "tau": 0.3})
    assert config_of(options_text(config)) == SampleAttentionConfig(
        **{**OPTIONS, "min_seq_len": SampleAttentionConfig().min_seq_len}
    )


def test_a_name_is_taken_once(toy):
    with pytest.raises(ValueError, match="a method named 'peaks' is registered already"):
        register(toy.Peaks())


@torch.no_grad()
def test_what_is_compiled_is_what_it_selects():
    query, key, value = tensors()
    bits = kept_blocks(query, key, value)
    kept = unpack_bits(bits, 10).repeat_interleave(16, 2).repeat_interleave(16, 3).tril()
    assert 0.2 < popcount(bits).sum() / (4 * 55) < 0.9
    out = torch.compile(attention, backend="sampleattn", options={**OPTIONS, "inner": "eager"})(
        query, key, value
    )
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=kept, enable_gqa=True)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_model_is_compiled_with_it_and_the_report_names_it():
    model, tokens = tiny_llama(), torch.arange(160)[None] % 96
    report = sa_compile.explain(model, tokens, options={**OPTIONS, "stats": True})
    assert {site.outcome for site in report.sites} == {"sampled"}
    described = report.to_dict()["options"]
    assert (described["method"], described["height"], described["peak_rows"]) == ("peaks", 0.4, 4)
    called = [str(node.target) for graph in report.graphs for node in graph.graph.nodes]
    assert called.count("sampleattn.select_budget.default") == 2
    assert "sampleattn.select_adaptive.default" not in called
    assert 0 < report.stats().density < 1 and 0 < report.stats().cra_min < 1


def test_the_evaluation_measures_it_by_its_name():
    query, key, value = tensors()
    rule = parse_rule("peaks:height=0.4,peak_rows=4")
    by_rule = rule.select(query, key, block_q=16, block_k=16)
    by_ops = kept_blocks(query, key, value)
    assert torch.equal(unpack_bits(by_rule, 10), unpack_bits(by_ops, 10))
    assert METHODS["peaks"].rule_settings(SampleAttentionConfig(**OPTIONS)) == vars(rule)
