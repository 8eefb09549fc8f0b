"""options={"method": "adaptive"} on a model: exact at tau or peak = 0, sparse above, measured, reported."""

import pytest
import torch
from support.models import SMALL_BLOCKS, tiny_llama
from transformers import DynamicCache, StaticCache

import sa_compile
import sa_compile.hf

OPTIONS = {**SMALL_BLOCKS, "method": "adaptive"}
BY_TAU = {**OPTIONS, "peak": 1.0}
PEAKS = {
    **{**OPTIONS, "peak": 0.1, "landmarks": 4},
    **{"budget": 1.0, "window_blocks": 1, "last_rows": 0},
}


@pytest.fixture
def long_tokens():
    return torch.randint(0, 96, (2, 200), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("inner", ["inductor", "aot_eager"])
@pytest.mark.parametrize("padding", [0, 21], ids=["plain", "left-padded"])
@pytest.mark.parametrize(
    "asked", [{"peak": 1.0, "tau": 0.0}, {"peak": 0.0, "landmarks": 3}], ids=["tau", "peak"]
)
def test_asked_for_every_block_it_gives_the_models_own_logits(long_tokens, inner, padding, asked):
    model = tiny_llama()
    mask = torch.ones_like(long_tokens)
    mask[0, :padding] = 0
    expected = model(long_tokens, attention_mask=mask).logits
    compiled = torch.compile(model, backend="sampleattn", options={**OPTIONS, **asked, "inner": inner})
    found = compiled(long_tokens, attention_mask=mask).logits
    seen = mask.bool()
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_density_falls_as_tau_grows_and_the_report_names_method_and_settings(long_tokens):
    densities = []
    for tau in (0.0, 0.35, 1.0):
        options = {**BY_TAU, "tau": tau, "landmarks": 4, "budget": 1.0, "window_blocks": 1, "stats": True}
        report = sa_compile.explain(tiny_llama(), long_tokens, options=options)
        assert {site.outcome for site in report.sites} == {"sampled"}
        described = report.to_dict()["options"]
        assert (described["method"], described["tau"], described["landmarks"]) == ("adaptive", tau, 4)
        densities.append(report.stats().density)
        targets = {str(node.target) for graph in report.graphs for node in graph.graph.nodes}
        assert "sampleattn.select_adaptive.default" in targets
    assert densities[0] == pytest.approx(1.0) and densities[0] > densities[1] > densities[2]


@torch.no_grad()
def test_density_falls_as_the_peak_grows_and_the_report_names_it(long_tokens):
    densities = []
    for peak in (0.0, 0.1, 0.5):
        options = {**PEAKS, "peak": peak, "stats": True}
        report = sa_compile.explain(tiny_llama(), long_tokens, options=options)
        assert {site.outcome for site in report.sites} == {"sampled"}
        described = report.to_dict()["options"]
        assert (described["method"], described["peak"], described["landmarks"]) == ("adaptive", peak, 4)
        densities.append(report.stats().density)
        targets = {str(node.target) for graph in report.graphs for node in graph.graph.nodes}
        assert "sampleattn.select_peaks.default" in targets
        assert "sampleattn.select_adaptive.default" not in targets
    assert densities[0] == pytest.approx(1.0) and densities[0] > densities[1] > densities[2]


@torch.no_grad()
@pytest.mark.parametrize("peak", [0.2, 1.0])
def test_of_tau_and_peak_the_one_that_is_not_looked_at_changes_nothing(long_tokens, peak):
    tau = {0.2: 1.0, 1.0: 0.4}[peak]
    options = {**OPTIONS, "landmarks": 4, "budget": 1.0, "window_blocks": 1, "stats": True}
    reports = [
        sa_compile.explain(tiny_llama(), long_tokens, options={**options, "peak": peak, **more}).stats()
        for more in ({"tau": tau}, {"tau": tau / 2})
    ]
    assert (reports[0].density == reports[1].density) == (peak < 1)


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True], ids=["two chunks", "offset read when it runs"])
def test_peaks_of_a_prompt_in_chunks_are_those_of_the_uncompiled_path(long_tokens, static):
    uncompiled = tiny_llama(attn_implementation="sampleattn")
    sa_compile.hf.configure(uncompiled, PEAKS)
    compiled = torch.compile(tiny_llama(), backend="sampleattn", options={**PEAKS, "inner": "eager"})
    found = []
    for model in (uncompiled, compiled):
        cache = StaticCache(tiny_llama().config, max_cache_len=256) if static else DynamicCache()
        model(long_tokens[:, :100], past_key_values=cache)
        found.append(model(long_tokens[:, 100:], past_key_values=cache).logits)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert (found[0] - tiny_llama()(long_tokens).logits[:, 100:]).abs().max() > 1e-3, "nothing was left out"


@torch.no_grad()
def test_density_falls_as_the_budget_grows(long_tokens):
    densities = []
    for budget in (0.0, 0.3, 1.0):
        options = {**BY_TAU, "tau": 1.0, "budget": budget, "budget_tau": 1.0, "window_blocks": 1}
        options["stats"] = True
        report = sa_compile.explain(tiny_llama(), long_tokens, options=options)
        densities.append(report.stats().density)
    assert densities[0] == pytest.approx(1.0) and densities[0] > densities[1] > densities[2]


@torch.no_grad()
def test_other_settings_are_compiled_anew(long_tokens):
    """Tau and peak are part of the graph, so a cache keyed on the graph can not mix up two settings."""
    model = tiny_llama()
    options = {**PEAKS, "inner": "aot_eager", "peak": 1.0}
    settings = {"tau": 0.0}, {"tau": 1.0}, {"peak": 0.1}, {"peak": 0.0}
    exact, tau, peak, exact_by_peak = (
        torch.compile(model, backend="sampleattn", options={**options, **asked})(long_tokens).logits
        for asked in settings
    )
    assert all((exact - sparse).abs().max() > 1e-4 for sparse in (tau, peak))
    assert (tau - peak).abs().max() > 1e-4
    torch.testing.assert_close(exact, exact_by_peak)


@torch.no_grad()
def test_a_prompt_in_two_chunks_on_a_cache(long_tokens):
    model = tiny_llama()
    expected = model(long_tokens).logits[:, 100:]
    compiled = torch.compile(
        model, backend="sampleattn", options={**BY_TAU, "tau": 0.0, "inner": "aot_eager"}
    )
    first = compiled(long_tokens[:, :100], use_cache=True)
    second = compiled(long_tokens[:, 100:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(second.logits, expected, rtol=1e-3, atol=1e-4)
