"""The census: a small one is run, and its page is generated from data."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from sa_compile import report
from sa_compile.lab.census import arguments, classes, table, tiny, variants
from sa_compile.lab.census.head_dims import kernels_of

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
    names = classes.model_names()
    assert {"LlamaForCausalLM", "GPT2LMHeadModel", "Gemma3ForCausalLM"} <= set(names)
    assert len(names) >= 170
    kinds = [set(classes.model_names(kind)) for kind in classes.KINDS]
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    assert "Qwen2VLForConditionalGeneration" in classes.model_names(classes.MULTIMODAL)
    assert classes.kind_of("BertForSequenceClassification") == classes.CLASSIFICATION


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "DeepseekV3ForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM"]
)
def test_tiny_models_are_small_and_their_attention_shows_in_the_logits(name):
    model = tiny.build(name, classes.model_names()[name], "eager")
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    moved, causal = arguments.reach(model)
    assert moved > 100 * variants.TOLERANCE
    assert causal


@pytest.mark.parametrize(
    ("name", "model_type", "dims"),
    [
        pytest.param("LlamaForCausalLM", "llama", {(128, 128)}, id="a field of its own"),
        pytest.param("GPT2LMHeadModel", "gpt2", {(64, 64)}, id="width over heads"),
        pytest.param("DeepseekV3ForCausalLM", "deepseek_v3", {(192, 128)}, id="values are narrower"),
        pytest.param("ZambaForCausalLM", "zamba", {(464, 464)}, id="wide"),
    ],
)
def test_tiny_models_have_the_head_dims_of_their_default_configs(name, model_type, dims, monkeypatch):
    found = set()
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def record_dims(query, key, value, *args, **kwargs):
        found.add((query.shape[-1], value.shape[-1]))
        return sdpa(query, key, value, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record_dims)
    model = tiny.build(name, model_type, "sdpa")
    with torch.no_grad():
        model(**arguments.arguments_of(model, arguments.PLAIN))
    assert found == dims


def test_kernels_are_named_by_head_dims_without_a_gpu():
    assert kernels_of(128, 128) == "sm90"
    assert kernels_of(80, 80) == "triton"
    assert kernels_of(512, 512) == "sm90 / triton"
    assert kernels_of(464, 464) == "triton"
    assert kernels_of(576, 576) == "none"


def test_an_encoder_is_measured_not_to_be_causal():
    model = tiny.build("BertForSequenceClassification", "bert", "sdpa")
    assert arguments.reach(model)[1] is False


def test_an_image_is_found_shows_in_the_logits_and_leaves_the_language_model_sampled():
    model = tiny.build("LlavaForConditionalGeneration", "llava", "sdpa")
    shown = arguments.find_media(model)
    assert (shown.what, shown.tokens) == ("image", 16)
    result = variants.measure(model, variants.SHOWN[0], shown=shown)
    assert result["status"] == "ok"
    outcomes = {(site["part"], site["outcome"]) for site in result["sites"]}
    assert outcomes == {("tower", "kept"), ("language", "sampled")}


class Tower(torch.nn.Module):
    def forward(self, x):
        weights = torch.tanh(x @ x.mT).softmax(-1)
        return weights @ x, weights


@pytest.mark.parametrize(
    ("rows", "path", "part"),
    [
        pytest.param(16, "", "tower", id="rows that are no tokens, in a graph of its own"),
        pytest.param(72, "", "language", id="rows that are tokens"),
        pytest.param(16, "model.layers.0", "language", id="of a chunk of tokens"),
        pytest.param(72, "vision.layers.0", "tower", id="a module of that name"),
    ],
)
def test_attention_that_is_not_understood_belongs_to_what_its_name_or_its_rows_say(rows, path, part):
    torch._dynamo.reset()
    with report.collect() as reports:
        torch.compile(Tower(), backend="sampleattn", options={"inner": "eager"})(torch.randn(1, 2, rows, 8))
    (graph,) = reports
    (site,) = graph.records
    records = (dataclasses.replace(site, module_path=path),)
    (found,) = variants._sites([dataclasses.replace(graph, records=records)], {72})
    assert (found["part"], found["outcome"]) == (part, "kept")


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        pytest.param("GPTNeoXForCausalLM", "gpt_neox", id="a size of RoPE equals the length"),
        pytest.param("CTRLLMHeadModel", "ctrl", id="a mask of another graph is read"),
    ],
)
def test_what_only_looks_like_a_score_matrix_is_none(name, model_type):
    model = tiny.build(name, model_type, "sdpa")
    result = variants.measure(model, variants.FULL[0])
    assert (result["status"], result["left"]) == ("ok", [])


def test_a_model_that_takes_no_image_is_not_applicable():
    model = tiny.build("LlamaForCausalLM", "llama", "sdpa")
    assert arguments.find_media(model) is None
    assert variants.measure(model, variants.SHOWN[0])["status"] == "not applicable"


def drop_padding(gm, example_inputs):
    """A backend with the very bug that the census is there to find."""
    for node in gm.graph.nodes:
        if node.target is torch.nn.functional.scaled_dot_product_attention:
            node.kwargs = {**node.kwargs, "attn_mask": None, "is_causal": True}
    gm.recompile()
    return gm.forward


def test_a_wrong_mask_is_seen():
    model = tiny.build("LlamaForCausalLM", "llama", "sdpa")
    variant = arguments.Variant(mask=True, cache=False)
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


def test_a_model_that_is_kept_as_eager_alone_is_rewritten_as_it_runs_by_default():
    kept = [result(sites=[KEPT])]
    records = [
        record(),
        record(attn="eager", results=kept),
        record("GPTNeoForCausalLM", "eager", results=kept),
    ]
    total = table.totals(records)
    assert (len(total.plain), total.rewritten, total.as_run) == (2, [], ["LlamaForCausalLM"])


def test_what_the_time_did_not_reach_is_named_and_not_counted():
    late = {"model": "LateForCausalLM", "attn": "eager", "status": table.NOT_RUN, "reason": "time"}
    records = [record(), late]
    total = table.totals(records)
    assert (total.classes, total.not_run) == (1, 1)
    assert "(causal, eager, 1): LateForCausalLM" in table.markdown({**SOURCE, "records": records})


def test_models_that_are_not_plain_causal_are_out_of_the_share():
    softcap = record("Gemma2ForCausalLM", results=[result(sites=[KEPT])], text_type="gemma2")
    encoder = record("BertForSequenceClassification", results=[result(sites=[KEPT])], causal=False)
    total = table.totals([record(), softcap])
    assert total.share == 1
    assert table.totals([record(), encoder]).plain == ["LlamaForCausalLM"]
    assert total.sites == {"sampled": 2, "kept": 2}


def test_a_model_that_is_bidirectional_in_one_implementation_is_not_plain_in_the_other():
    pair = [record("PrefixLM", causal=False), record("PrefixLM", "eager", causal=True)]
    for records in (pair, pair[::-1]):
        assert table.totals(records).plain == []
        assert "| PrefixLM |" in table._not_plain(records).replace("   ", " ").replace("  ", " ")


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
