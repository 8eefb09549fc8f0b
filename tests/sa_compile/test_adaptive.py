"""options={"method": "adaptive"} on a model: exact at tau = 0, sparse above it, measured, reported."""

import pytest
import torch
from support.models import SMALL_BLOCKS, tiny_llama

import sa_compile

OPTIONS = {**SMALL_BLOCKS, "method": "adaptive"}


@pytest.fixture
def long_tokens():
    return torch.randint(0, 96, (2, 200), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("inner", ["inductor", "aot_eager"])
@pytest.mark.parametrize("padding", [0, 21], ids=["plain", "left-padded"])
def test_tau_zero_gives_the_models_own_logits(long_tokens, inner, padding):
    model = tiny_llama()
    mask = torch.ones_like(long_tokens)
    mask[0, :padding] = 0
    expected = model(long_tokens, attention_mask=mask).logits
    compiled = torch.compile(model, backend="sampleattn", options={**OPTIONS, "tau": 0.0, "inner": inner})
    found = compiled(long_tokens, attention_mask=mask).logits
    seen = mask.bool()
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_density_falls_as_tau_grows_and_the_report_names_method_and_settings(long_tokens):
    densities = []
    for tau in (0.0, 0.35, 1.0):
        options = {**OPTIONS, "tau": tau, "landmarks": 4, "budget": 1.0, "window_blocks": 1, "stats": True}
        report = sa_compile.explain(tiny_llama(), long_tokens, options=options)
        assert {site.outcome for site in report.sites} == {"sampled"}
        described = report.to_dict()["options"]
        assert (described["method"], described["tau"], described["landmarks"]) == ("adaptive", tau, 4)
        densities.append(report.stats().density)
        targets = {str(node.target) for graph in report.graphs for node in graph.graph.nodes}
        assert "sampleattn.select_adaptive.default" in targets
    assert densities[0] == pytest.approx(1.0) and densities[0] > densities[1] > densities[2]


@torch.no_grad()
def test_density_falls_as_the_budget_grows(long_tokens):
    densities = []
    for budget in (0.0, 0.3, 1.0):
        options = {**OPTIONS, "tau": 1.0, "budget": budget, "budget_tau": 1.0, "window_blocks": 1}
        options["stats"] = True
        report = sa_compile.explain(tiny_llama(), long_tokens, options=options)
        densities.append(report.stats().density)
    assert densities[0] == pytest.approx(1.0) and densities[0] > densities[1] > densities[2]


@torch.no_grad()
def test_other_settings_are_compiled_anew(long_tokens):
    """Tau is part of the graph, so a cache keyed on the graph can not mix up two settings."""
    model = tiny_llama()
    options = {**OPTIONS, "inner": "aot_eager", "window_blocks": 1, "budget": 1.0}
    exact = torch.compile(model, backend="sampleattn", options={**options, "tau": 0.0})(long_tokens).logits
    sparse = torch.compile(model, backend="sampleattn", options={**options, "tau": 1.0})(long_tokens).logits
    assert (exact - sparse).abs().max() > 1e-4


@torch.no_grad()
def test_a_prompt_in_two_chunks_on_a_cache(long_tokens):
    model = tiny_llama()
    expected = model(long_tokens).logits[:, 100:]
    compiled = torch.compile(
        model, backend="sampleattn", options={**OPTIONS, "tau": 0.0, "inner": "aot_eager"}
    )
    first = compiled(long_tokens[:, :100], use_cache=True)
    second = compiled(long_tokens[:, 100:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(second.logits, expected, rtol=1e-3, atol=1e-4)
