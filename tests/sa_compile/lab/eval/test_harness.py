"""The harness measures what a plain forward pass of the model gives, resumes, and reports."""

import json
import math

import numpy as np
import pytest
import torch
from support.text_model import long_text, small_hybrid

from sa_compile import cli
from sa_compile.kernels import ops
from sa_compile.lab.eval import report, statistics
from sa_compile.lab.eval.attention import SparsePrefill, sparse_prefill
from sa_compile.lab.eval.files import read_result
from sa_compile.lab.eval.merging import merge
from sa_compile.lab.eval.plan import Plan, parse_shard
from sa_compile.lab.eval.plots import needle_grid
from sa_compile.lab.eval.rules import parse_rule
from sa_compile.lab.eval.scoring import greedy_tokens, score_document
from sa_compile.lab.eval.tasks.documents import Document, Question

TASKS = ("needle", "kv", "vt1")


@pytest.fixture(scope="module")
def document(builder):
    return builder.build("seed", 1280, TASKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tokenizer):
    """A saved model and a haystack file beside it."""
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "words.txt").write_text(long_text(1500))
    return path


def test_full_attention_scores_as_the_plain_model_does(model, document):
    score = score_document(model, document, parse_rule("full"))
    tokens = torch.from_numpy(document.tokens)[None]
    with torch.no_grad():
        logits = model(tokens).logits[0, :-1]
    best = logits.argmax(-1) == tokens[0, 1:]
    expected = "".join("01"[bool(best[q.start - 1 : q.stop - 1].all())] for q in document.questions)
    nll = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    assert score.right == expected
    assert score.text_nll == pytest.approx(
        nll[torch.from_numpy(document.is_text[1:])].mean().item(), rel=1e-4
    )
    assert np.array(score.density).shape == (2, 4) and np.all(np.array(score.density) == 1)


@pytest.mark.parametrize(
    "spec, means",
    [
        ("adaptive:peak=1,last=0,budget=1,means=1", True),
        ("adaptive:peak=1,last=20,budget=1,means=1+sink+w3", True),
        ("adaptive:peak=1,last=0,budget=1", False),
        ("adaptive:peak=0.2,landmarks=3,last=0,budget=1", False),
    ],
)
def test_a_rule_attends_as_its_method_does(spec, means):
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 300, 16, generator=random) for heads in (4, 2, 2))
    sizes = {"scale": 0.5, "q_offset": 0, "block_q": 16, "block_k": 16}
    rule = parse_rule(spec)
    mask = rule.select(query, key, **sizes)
    op, other = ops.block_mean_attention, ops.block_sparse_attention
    op, other = (op, other) if means else (other, op)
    found = SparsePrefill(rule, 16, 16).attend(query, key, value, 0.5)
    assert torch.equal(found, op(query, key, value, mask, **sizes)[0])
    assert not torch.allclose(found, other(query, key, value, mask, **sizes)[0])


def test_a_rule_counts_what_it_leaves_out_as_its_method_does():
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 300, 16, generator=random) for heads in (4, 2, 2))
    sizes = {"scale": 0.5, "q_offset": 0, "block_q": 16, "block_k": 16}
    outputs = {}
    for rest in (0.0, 0.25, 1.0):
        rule = parse_rule(f"adaptive:last=0,budget=0.3,rows_tau=1,peak=1,tau=1,rest={rest}")
        kept = rule.keep(query, key, value, **sizes)
        found = SparsePrefill(rule, 16, 16).attend(query, key, value, 0.5)
        if rest:
            given = (query, key, value, kept.block_mask, *kept.rest)
            expected, _ = ops.block_rest_attention(*given, part=rest, **sizes)
        else:
            expected, _ = ops.block_sparse_attention(query, key, value, kept.block_mask, **sizes)
        assert torch.equal(found, expected)
        outputs[rest] = found
    assert not torch.allclose(outputs[0.0], outputs[0.25]) and not torch.allclose(outputs[0.25], outputs[1.0])


def test_an_answer_is_right_if_greedy_decoding_would_write_it(model, document):
    """Teacher forcing marks the model's own continuation as right, and a changed one as wrong."""
    start = document.questions[0].start
    prompt = document.tokens[:start].tolist()
    written = greedy_tokens(model, prompt, parse_rule("full"), 4)
    for answer, mark in ((written, "1"), ([*written[:-1], (written[-1] + 1) % 300], "0")):
        tokens = np.array(prompt + answer)
        asked = (Question("kv", "end", 0.5, start, start + len(answer)),)
        score = score_document(
            model, Document(tokens, asked, np.zeros(len(tokens), bool)), parse_rule("full")
        )
        assert score.right == mark and math.isnan(score.text_nll)


def test_a_sparse_rule_changes_the_prediction_and_reports_what_it_keeps(model, document):
    rule = parse_rule("streaming:sink=1,window=64")
    dense = score_document(model, document, parse_rule("full"))
    settings = {"block_q": 64, "block_k": 64, "cra_chunks": 4}
    sparse = score_document(model, document, rule, **settings)
    assert sparse.text_nll != dense.text_nll
    blocks = math.ceil(1280 / 64)
    kept = sum(len({0, i - 1, i} - {-1}) for i in range(blocks))
    assert np.allclose(sparse.density, kept / (blocks * (blocks + 1) / 2), atol=1e-3)
    assert np.all(np.array(sparse.cra) < 1) and np.all(np.array(sparse.cra) > 0)


def test_the_models_attention_is_put_back(model, document):
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), sparse_prefill(model, parse_rule("full")):
        assert model.config._attn_implementation != before
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before


@pytest.fixture(scope="module")
def hybrid():
    return small_hybrid(700)


@torch.no_grad()
def test_layers_with_a_sliding_window_are_exact_and_count_for_nothing(hybrid):
    """Two windows of 48 around a full layer, 4 query heads and 1 key head of 256, as in Gemma 3 270M."""
    ids = torch.randint(2, 300, (1, 300), generator=torch.Generator().manual_seed(0))
    expected = hybrid(ids, use_cache=False).logits
    with sparse_prefill(hybrid, parse_rule("full")) as run:
        logits = hybrid(ids, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert run.layers == [1] and [layer.shape for layer in run.densities] == [(1, 4)]
    rule = parse_rule("streaming:sink=1,window=32")
    with sparse_prefill(hybrid, rule, block_q=32, block_k=32, cra_chunks=2) as run:
        sparse = hybrid(ids, use_cache=False).logits
    assert run.layers == [1] and len(run.cras) == 1 and run.densities[0].max() < 0.6
    assert not torch.allclose(sparse, expected, atol=1e-2)


@torch.no_grad()
def test_a_window_longer_than_the_prompt_stays_a_window_layer(hybrid):
    with sparse_prefill(hybrid, parse_rule("streaming:sink=1,window=16"), block_q=16, block_k=16) as run:
        hybrid(torch.zeros(1, 40, dtype=torch.long), use_cache=False)
    assert run.layers == [1]


def test_hybrids_decode_behind_a_sparse_prefill(hybrid):
    prompt = torch.randint(2, 300, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    ids = torch.tensor([prompt])
    plain = hybrid.generate(ids, max_new_tokens=6, do_sample=False)[0, 200:].tolist()
    assert greedy_tokens(hybrid, prompt, parse_rule("full"), 6) == plain


def test_a_hybrid_is_scored_and_a_model_of_windows_alone_is_not(hybrid, builder):
    document = builder.build("seed", 1280, TASKS)
    score = score_document(hybrid, document, parse_rule("adaptive"))
    assert np.array(score.density).shape == (1, 4)
    all_windows = small_hybrid(700, ["sliding_attention"] * 2)
    with pytest.raises(ValueError, match="every attention of the model has a sliding window"):
        score_document(all_windows, document, parse_rule("full"))


def test_attention_in_chunks_is_refused():
    """A mask that is neither causal nor a sliding window is not taken for one."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 2}
    chunks = {"layer_types": ["chunked_attention"], "attention_chunk_size": 16, "intermediate_size_mlp": 32}
    plain = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    llama = Llama4ForCausalLM(Llama4TextConfig(**sizes, **heads, **chunks, **plain)).eval()
    with pytest.raises(ValueError, match="mask not proven"), sparse_prefill(llama, parse_rule("full")):
        llama(torch.zeros(1, 40, dtype=torch.long), use_cache=False)


def evaluate(folder, name, *more):
    arguments = ["eval", "--model", str(folder), "--lengths", "1280", "--tasks", *TASKS, "--block", "64"]
    arguments += ["--haystack", str(folder / "words.txt"), "--json", str(folder / name), "--device", "cpu"]
    return cli.main([*arguments, *more])


def test_the_command_line_measures_resumes_and_reports(folder, capsys):
    rules = ["--rules", "streaming", "xattention:tau=0.5+sink+w2"]
    assert (
        evaluate(
            folder,
            "a.json",
            *rules,
            "--count",
            "2",
            "--texts",
            "1",
            "--greedy",
            "1",
            "--pictures",
            "--theorem",
            "1",
            "--sparsity",
            "1",
        )
        == 0
    )
    first = json.loads((folder / "a.json").read_text())
    assert first["plan"]["rules"] == ["full", "streaming", "xattention:tau=0.5+sink+w2"]
    assert len(first["scores"]) == 3 * (2 + 3)
    assert "streaming" in capsys.readouterr().out

    assert evaluate(folder, "a.json", *rules, "--count", "3") == 2, "an existing journal needs --resume"
    assert "pass --resume" in capsys.readouterr().err
    assert evaluate(folder, "a.json", *rules, "--count", "3", "--resume") == 0
    more = json.loads((folder / "a.json").read_text())
    assert more["scores"][: len(first["scores"])] == first["scores"], "nothing is measured twice"
    assert len(more["scores"]) == len(first["scores"]) + 3

    assert evaluate(folder, "a.json", *rules, "--seed", "1", "--resume") == 2
    assert "other documents" in capsys.readouterr().err
    journal = folder / "a.jsonl"
    journal.write_text(journal.read_text().replace('"tau": 0.2, "landmarks"', '"tau": 0.3, "landmarks"', 1))
    assert evaluate(folder, "a.json", *rules, "--count", "3", "--resume") == 2
    assert "other default settings of rules" in capsys.readouterr().err

    (folder / "first.json").write_text(json.dumps(first))
    assert cli.main(["eval-report", str(folder / "first.json"), "--out", str(folder / "out")]) == 0
    written = {path.name for path in (folder / "out").iterdir()}
    assert {"report.md", "needle_grid.png", "heads_1280.png", "blocks.png", "sparsity.png"} <= written
    text = (folder / "out" / "report.md").read_text()
    assert "## Error and its bound" in text
    assert "## Summary" in text and "## Plain text" in text and "## Greedy decoding" in text


def test_out_of_time_leaves_the_rest_for_later(folder):
    assert evaluate(folder, "late.json", "--rules", "streaming", "--count", "2", "--minutes", "0") == 0
    assert json.loads((folder / "late.json").read_text())["scores"] == []


def test_shards_on_stored_documents_join_to_the_whole_run(folder, capsys):
    """Two processes with documents from a file measure together what one measures that makes its own."""
    rules = ["--rules", "streaming", "--count", "3", "--texts", "1"]
    assert evaluate(folder, "whole.json", *rules) == 0
    documents = [
        "--lengths",
        "1280",
        "--tasks",
        *TASKS,
        "--haystack",
        str(folder / "words.txt"),
        "--texts",
        "1",
    ]
    stored = ["--out", str(folder / "documents.npz")]
    write = ["eval-documents", "--model", str(folder), *documents, *stored]
    assert cli.main([*write, "--count", "3"]) == 0
    assert "1280" in capsys.readouterr().out
    parts = []
    for shard in ("1/2", "2/2"):
        parts.append(folder / f"part{shard[0]}.json")
        more = ["--documents", str(folder / "documents.npz"), "--shard", shard]
        assert evaluate(folder, parts[-1].name, *rules, *more) == 0
    sizes = [len(json.loads(part.read_text())["scores"]) for part in parts]
    assert sizes == [2 * (2 + 3), 2 * 1]
    merged = folder / "merged.json.gz"
    arguments = [*map(str, parts), "--out", str(folder / "joined"), "--merged", str(merged)]
    assert cli.main(["eval-report", *arguments]) == 0

    assert cli.main(["eval-report", str(merged), "--out", str(folder / "again")]) == 0
    assert (folder / "again/report.md").read_bytes() == (folder / "joined/report.md").read_bytes()

    whole, joined = read_result(folder / "whole.json"), read_result(merged)

    def lines(result):
        without_time = [{k: v for k, v in line.items() if k != "seconds"} for line in result["scores"]]
        return sorted(without_time, key=lambda line: (line["kind"], line["index"], line["rule"]))

    assert lines(joined) == lines(whole)
    for name in ("questions", "haystack", "settings"):
        assert joined[name] == whole[name]

    capsys.readouterr()
    assert evaluate(folder, "more.json", *rules[:-3], "4", "--documents", str(folder / "documents.npz")) == 2
    assert "lacks 1 documents, such as ('facts', 1280, 3)" in capsys.readouterr().err
    other = ["--documents", str(folder / "documents.npz"), "--seed", "1"]
    assert evaluate(folder, "other.json", *rules, *other) == 2
    assert "holds other documents" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["2", "0/2", "3/2", "a/b", "1/0", "-1/2"])
def test_a_shard_is_one_of_so_many(text):
    with pytest.raises(ValueError, match="shard"):
        Plan("m", (), (4096,), shard=parse_shard(text))


def test_shards_share_a_plan_without_overlap():
    plans = [Plan("m", (), (4096, 8192), count=7, texts=2, shard=(k, 3)) for k in (1, 2, 3)]
    units = [unit for plan in plans for unit in plan.units()]
    assert sorted(units) == sorted(Plan("m", (), (4096, 8192), count=7, texts=2).units())
    assert len({*units}) == len(units)


def a_result(marks):
    """A result whose rule and full attention have the given marks: {rule: [marks of a document, ...]}."""
    questions = {f"4096/{n}": [["kv", "end", 0.05], ["kv", "middle", 0.95]] for n in range(2)}
    scores = [
        {"rule": rule, "kind": "facts", "length": 4096, "index": n, "right": right,
         "nll": 1.0 + len(rule) / 100, "density": 0.25, "cra": 0.9}
        for rule, documents in marks.items()
        for n, right in enumerate(documents)
    ]  # fmt: skip
    plan = {"model": "m", "rules": list(marks), "lengths": [4096], "tasks": ["kv"],
            "places": ["end"], "split": "dev", "seed": 0, "block_q": 128, "block_k": 128,
            "haystack": [], "domains": []}  # fmt: skip
    digests = {"facts": "0123abcd"}
    settings = {rule: {} for rule in marks}
    return {"plan": plan, "settings": settings, "haystack": digests, "questions": questions,
            "scores": scores, "provenance": {}}  # fmt: skip


def test_relative_accuracy_counts_solved_tasks_only():
    results = report.Results(a_result({"full": ["11", "10"], "stride": ["10", "01"]}))
    assert results.solved(4096, "end") == ["kv"] and results.solved(4096, "middle") == []
    (_, row) = report.summary_rows(results)
    assert row[:3] == ["4K", "stride", "0.250"] and row[5].startswith("0.500 [") and row[6] == "kv 0.500"
    assert row[9] == "-", "mid-document questions are not solved by full attention"
    assert results.means("stride", 4096)["nll"] == pytest.approx(0.02)
    grid = needle_grid(results, "stride")
    assert grid[0, 0] == 0.5 and grid[9, 0] == 0.5 and np.isnan(grid[5, 0])


def test_results_of_the_same_documents_merge_and_others_do_not():
    first, second = a_result({"full": ["11", "11"]}), a_result({"stride": ["10", "01"]})
    merged = merge([first, second])
    assert merged["plan"]["rules"] == ["full", "stride"] and len(merged["scores"]) == 4
    assert [*merged["settings"]] == ["full", "stride"] and len(merged["runs"]) == 2
    assert len(merge([merged, merged])["runs"]) == 4, "a merged result merges again"
    second["plan"]["seed"] = 1
    with pytest.raises(ValueError, match="differ in 'seed'"):
        merge([first, second])
    second = {**a_result({"stride": ["10", "01"]}), "haystack": {"facts": "4567cdef"}}
    with pytest.raises(ValueError, match="different facts documents .* 0123abcd and 4567cdef"):
        merge([first, second])
    second = {**a_result({"stride": ["10", "01"]}), "settings": {"stride": {"alpha": 0.8}}}
    first = {**a_result({"stride": ["11", "11"]}), "settings": {"stride": {"alpha": 0.9}}}
    with pytest.raises(ValueError, match=r"settings of 'stride': {'alpha': 0.9}, {'alpha': 0.8}"):
        merge([first, second])


@pytest.mark.parametrize(
    "right, count, low, high", [(0, 0, 0, 1), (10, 10, 0.722, 1.0), (50, 100, 0.404, 0.596)]
)
def test_wilson_interval(right, count, low, high):
    assert statistics.wilson(right, count) == pytest.approx((low, high), abs=1e-3)


def test_a_ratio_of_equal_counts_is_one_and_its_interval_a_point():
    counts = np.array([3, 5, 7])
    assert statistics.paired_ratio(counts, counts) == (1.0, 1.0, 1.0)
    ratio, low, high = statistics.paired_ratio(np.array([3, 4, 5]), np.array([4, 4, 8]))
    assert low <= ratio == 12 / 16 <= high


def test_runs_name_their_rules_once():
    plan = Plan("m", ("full", "chunked:alpha=0.95", "chunked"), (4096,))
    assert plan.rules == ("full", "chunked")
