"""``tune`` on a tiny model: a profile that the backend takes, resumed without measuring twice."""

import json
from dataclasses import replace

import pytest
import torch
from support.text_model import small_hybrid
from transformers import AutoModelForCausalLM

import sa_compile
from sa_compile import cli
from sa_compile.lab.tune import search

pytestmark = pytest.mark.filterwarnings("ignore")


def tune(folder, *more, out="profile.json"):
    arguments = ["tune", "--model", str(folder), "--lengths", "1280", "1536", "--blocks", "64x64"]
    arguments += ["--methods", "stride", "--haystack", str(folder / "words.txt"), "--count", "1"]
    return cli.main([*arguments, "--out", str(folder / out), "--device", "cpu", *more])


@pytest.fixture
def slow_dense(monkeypatch):
    """Whether sampling pays at these lengths is the machine's business, and depends on what else it does."""
    measured = search.measure_costs

    def measure_costs(*arguments):
        return replace(measured(*arguments), dense_ms=1e6)

    monkeypatch.setattr(search, "measure_costs", measure_costs)


def measurement(row):
    line = json.loads(row)
    return line["rule"], line["kind"], line["length"], line["index"]


def test_a_tuned_profile_is_what_the_backend_runs(folder, slow_dense, capsys):
    assert tune(folder, "--bound", "nll=10", "agreement=0") == 0
    printed = capsys.readouterr().out
    assert "Tuning took" in printed and "Pays back at 1536 tokens" in printed
    assert "change of NLL on every kind of text <= +10" in printed
    path = folder / "profile.json"
    profile = json.loads(path.read_text())
    assert [(r["first"], r["last"]) for r in profile["ranges"]] == [(1280, 1535), (1536, None)]
    assert profile["model"]["attentions"][0]["count"] == 2
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    sa_compile.check_profile(model, str(path))
    tokens = torch.randint(2, 300, (1, 1280), generator=torch.Generator().manual_seed(0))
    options = {"profile": str(path), "stats": True}
    with torch.no_grad():
        report = sa_compile.explain(model, tokens, use_cache=False, options=options)
    (first, _) = profile["ranges"]
    assert first["options"]["method"] == "stride" and first["dense_ms"] > first["chosen"]["predicted_ms"]
    assert {(s.outcome, s.profile_range) for s in report.sites} == {("sampled", "1280 to 1535")}
    assert 0 < report.stats().density < 1

    journals = {p: p.read_text() for p in folder.glob("profile.*.jsonl")}
    assert len(journals) == 1
    assert tune(folder, "--bound", "nll=10", "agreement=0") == 2, "existing journals need --resume"
    assert "pass --resume" in capsys.readouterr().err
    assert tune(folder, "--bound", "nll=10", "agreement=0", "--resume") == 0
    added = [p.read_text().removeprefix(text) for p, text in journals.items()]
    scored = [
        (r["rule"], r["length"])
        for text in journals.values()
        for r in map(json.loads, text.split("\n")[1:-1])
    ]
    again = [json.loads(row) for text in added for row in text.splitlines()]
    assert not {(r["rule"], r["length"]) for r in again} & set(scored), "nothing is measured twice"


def test_a_bound_that_nothing_keeps_leaves_the_range_exact(folder, capsys):
    assert tune(folder, "--bound", "nll=-100", out="strict.json") == 0
    profile = json.loads((folder / "strict.json").read_text())
    assert [r["options"] for r in profile["ranges"]] == [None, None]
    assert "never, no setting" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        tokens = torch.zeros(1, 1400, dtype=torch.long)
        options = {"profile": str(folder / "strict.json")}
        report = sa_compile.explain(model, tokens, use_cache=False, options=options)
    assert {(s.outcome, s.profile_range) for s in report.sites} == {("exact", "1280 to 1535")}


def test_written_documents_are_those_that_are_measured(folder, monkeypatch):
    """Written once, for runs that share them, and the same as those that are made."""
    stored = folder / "documents.npz"
    written = ["--lengths", "1280", "1536", "--count", "2", "--haystack", str(folder / "words.txt")]
    assert cli.main(["eval-documents", "--model", str(folder), *written, "--out", str(stored)]) == 0
    made = []
    monkeypatch.setattr(
        search, "search", lambda request, model, documents, kinds: made.append(documents) or []
    )
    assert tune(folder, out="unused.json") == 0
    assert tune(folder, "--documents", str(stored), out="unused.json") == 0
    ours, theirs = (documents.get("facts", 1536, 0) for documents in made)
    assert (ours.tokens == theirs.tokens).all() and ours.questions == theirs.questions


@pytest.mark.parametrize(
    "more, message",
    [
        pytest.param(["--documents", "words.npz"], "words.npz", id="documents"),
        pytest.param(["--methods", "magic"], "unknown method 'magic'; known: chunked, stride", id="method"),
        pytest.param(["--blocks", "64"], "sizes such as 128x64, got '64'", id="blocks"),
        pytest.param(["--count", "0"], "--count and --texts are both 0", id="no-documents"),
        pytest.param(["--bound", "speed=2"], "--bound takes accuracy=NUMBER", id="bound"),
        pytest.param(["--screen", "0"], "--screen must be at least 1", id="screen"),
    ],
)
def test_bad_arguments_are_named(folder, capsys, more, message):
    assert tune(folder, *more, out="bad.json") == 2
    assert message in capsys.readouterr().err


def test_rule_costs_are_what_eval_report_reads_and_name_rules_that_failed(folder, capsys):
    path = folder / "rules.json"
    arguments = [
        "rule-costs",
        "--model",
        str(folder),
        "--lengths",
        "300",
        "--device",
        "cpu",
        "--json",
        str(path),
    ]
    assert cli.main([*arguments, "--rules", "xattention:stride=8", "minference"]) == 0
    (cost,) = json.loads(path.read_text())["costs"]
    assert cost["length"] == 300 and set(cost["rule_ms"]) == {"xattention", "minference"}
    assert all(spent > 0 for spent in cost["rule_ms"].values()) and not cost["errors"]
    assert "xattention" in capsys.readouterr().out

    assert cli.main([*arguments, "--rules", "no-such-rule"]) == 2
    assert "no-such-rule" in capsys.readouterr().err


def test_a_hybrids_full_layers_are_what_is_tuned():
    """Also where the explained prompt would be shorter than the window, in which every layer is causal."""
    hybrid = small_hybrid(300)
    assert [site.module_path for site in search.sampled_sites(hybrid)] == ["model.layers.1.self_attn"]
    long = small_hybrid(300)
    for layer in (0, 2):
        long.model.layers[layer].self_attn.sliding_window = 400
    long.config.sliding_window = 400
    assert [site.module_path for site in search.sampled_sites(long)] == ["model.layers.1.self_attn"]
    with pytest.raises(ValueError, match="nothing to tune"):
        search.sampled_sites(small_hybrid(300, ["sliding_attention"]))
