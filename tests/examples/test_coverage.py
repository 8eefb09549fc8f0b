"""The census: a small one is run, and its page is generated from data."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from sa_compile.lab.census import table, tiny, variants

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_example", ROOT / "examples" / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(variant: str = "no mask, cache", **changes):
    site = {
        "spelling": "sdpa",
        "mask": "causal",
        "outcome": "sampled",
        "form": "sampled",
        "reason": "",
        "count": 2,
    }
    return {
        "variant": variant,
        "status": "ok",
        "error": 2e-7,
        "left": [],
        "sites": [site],
        "seconds": 1,
        **changes,
    }


def record(model: str = "LlamaForCausalLM", attn: str = "sdpa", results=None, **changes):
    results = [result()] if results is None else results
    return {"model": model, "model_type": "x", "attn": attn, "status": "run", "variants": results, **changes}


KEPT = {"spelling": "eager", "mask": "-", "outcome": "kept", "form": "", "reason": "softcap", "count": 2}


def test_quick_census_has_no_failure(coverage, tmp_path):
    data = tmp_path / "census.json"
    assert coverage.main(["--quick", "--json", str(data)]) == 0
    records = json.loads(data.read_text())["records"]
    total = table.totals(records)
    assert total.failures == []
    assert total.share == 1
    assert total.sites["sampled"] > 0 and total.sites["exact"] > 0 and total.sites["kept"] > 0
    assert {r["model"] for r in records} == set(coverage.QUICK)


def test_every_causal_class_is_named_once():
    names = tiny.model_names()
    assert {"LlamaForCausalLM", "GPT2LMHeadModel", "Gemma3ForCausalLM"} <= set(names)
    assert len(names) >= 170


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "DeepseekV3ForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM"]
)
def test_tiny_models_are_small_and_their_attention_shows_in_the_logits(name):
    model = tiny.build(name, tiny.model_names()[name], "eager")
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert variants.reach(model) > 100 * variants.TOLERANCE


def drop_padding(gm, example_inputs):
    """A backend with the very bug that the census is there to find."""
    for node in gm.graph.nodes:
        if node.target is torch.nn.functional.scaled_dot_product_attention:
            node.kwargs = {**node.kwargs, "attn_mask": None, "is_causal": True}
    gm.recompile()
    return gm.forward


def test_a_wrong_mask_is_seen():
    model = tiny.build("LlamaForCausalLM", "llama", "sdpa")
    variant = variants.Variant(mask=True, cache=False)
    assert variants.measure(model, variant, drop_padding)["status"] == "wrong"
    assert variants.measure(model, variant, "eager")["status"] == "ok"


def test_implementation_that_is_not_offered_is_an_error():
    with pytest.raises(NotImplementedError, match="SDPA"):
        tiny.build("BloomForCausalLM", "bloom", "sdpa")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param(
            result(status="wrong", error=0.3, plain=result()), "relative error 3.0e-01", id="wrong output"
        ),
        pytest.param(result(status="crash", reason="KeyError: x", plain=result()), "KeyError", id="crash"),
        pytest.param(result(status="timeout", reason="no result", plain=result()), "no result", id="hang"),
        pytest.param(result(left=["scores"]), "scores", id="score matrix left"),
    ],
)
def test_what_plain_compile_does_not_have_is_a_failure(bad, words):
    total = table.totals([record(results=[result(), bad])])
    assert not total.passed
    assert words in total.failures[0]


SOURCE = {
    "command": "python examples/coverage.py --docs",
    "revision": "0123abc",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
}


def test_what_plain_compile_has_too_is_listed_and_no_failure():
    plain = result(status="crash", reason="Unsupported: data-dependent branch")
    records = [record(results=[result(), result("mask", status="crash", reason="Unsupported", plain=plain)])]
    assert table.totals(records).passed
    assert "data-dependent branch" in table.markdown({**SOURCE, "records": records})


def test_a_model_counts_as_rewritten_only_if_every_site_is():
    records = [record(), record("QwenForCausalLM", results=[result(), result(sites=[KEPT])])]
    total = table.totals(records)
    assert (len(total.plain), total.rewritten) == (2, ["LlamaForCausalLM"])
    assert not total.passed


def test_models_that_are_not_plain_causal_are_out_of_the_share():
    total = table.totals([record(), record("Gemma2ForCausalLM", results=[result(sites=[KEPT])])])
    assert total.share == 1
    assert total.sites == {"sampled": 2, "kept": 2}


def test_page_holds_every_model_its_outcomes_and_why_others_are_missing():
    odd = {"model": "OddForCausalLM", "model_type": "odd", "attn": "sdpa"}
    records = [
        record(),
        record("Gemma2ForCausalLM", "eager", results=[result(sites=[KEPT])]),
        {**odd, "status": "not built", "reason": "a | b"},
    ]
    page = table.markdown({**SOURCE, "records": records})
    assert re.search(r"\| LlamaForCausalLM +\| sdpa", page)
    assert "softcap" in page
    assert "a \\| b" in page
    assert (
        "`python examples/coverage.py --docs` at commit `0123abc` with torch 2.13.0, transformers 5.23.0"
        in page
    )
