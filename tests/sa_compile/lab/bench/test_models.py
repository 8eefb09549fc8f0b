"""bench models: every case on the CPU, narrow, at a few tokens."""

import json
import sys
from types import ModuleType

import pytest
import torch
from torch._dynamo.utils import counters

from sa_compile.cli import main
from sa_compile.lab.bench import competitors, models, parts
from sa_compile.lab.bench.report import write
from sa_compile.lab.bench.shape import load_shape

SMALL = ["--narrow", "--device", "cpu", "--dtype", "float32", "--rounds", "1", "--density", "0.5"]
SMALL += [f"--option={option}" for option in ("min_seq_len=64", "block_q=16", "block_k=16", "inner=eager")]
OUTCOMES = {
    "gpt-oss-20b": {"exact": 1, "sampled": 1},
    "gemma-4-26b-a4b": {"exact": 5, "sampled": 1},
    "qwen3.6-27b": {"sampled": 1},
    "deepseek-v3": {"sampled": 1},
}


def bench(*arguments):
    return main(["bench", "models", *SMALL, *arguments])


@pytest.mark.parametrize("model", OUTCOMES)
def test_every_attention_is_rewritten_and_the_exact_forms_change_nothing(model, tmp_path, capsys):
    out = tmp_path / "models.json"
    ways = ["--ways", "eager,exact,sampleattn"]
    assert bench("--only", model, "--lengths", "128", *ways, "--json", str(out)) == 0
    (one,) = json.loads(out.read_text())["runs"]
    assert (one["model"], one["length"], one["narrow"], one["density"]) == (model, 128, True, 0.5)
    assert {"command", "revision", "device", "versions"} <= set(one)
    rows = {row["competitor"]: row for row in one["rows"]}
    assert [row["error"] for row in rows.values()] == [""] * 3
    assert rows["exact"]["difference"] < 1e-4 and rows["exact"]["density"] is None
    assert rows["exact"]["outcomes"] == {"exact": sum(OUTCOMES[model].values())}
    assert rows["sampleattn"]["outcomes"] == OUTCOMES[model]
    assert rows["sampleattn"]["density"] == pytest.approx(0.5, abs=0.1)
    assert f"{one['layers']} of {one['all_layers']} layers" in capsys.readouterr().out


def test_what_fails_is_a_result_and_what_is_there_is_not_measured_again(tmp_path, monkeypatch, capsys):
    out = tmp_path / "models.json"
    arguments = ["--only", "qwen*", "--lengths", "64,80", "--ways", "eager,flex", "--json", str(out)]
    assert bench(*arguments, "--minutes", "0") == 0
    assert "skipped after 0 minutes: qwen3.6-27b 64, qwen3.6-27b 80" in capsys.readouterr().out
    assert json.loads(out.read_text())["skipped"] == ["qwen3.6-27b 64", "qwen3.6-27b 80"]
    assert bench(*arguments) == 0
    result = json.loads(out.read_text())
    assert [one["length"] for one in result["runs"]] == [64, 80] and result["skipped"] == []
    eager, flex = result["runs"][0]["rows"]
    assert eager["error"] == "" and len(eager["milliseconds"]) == 1
    assert "does not support" in flex["error"] and flex["milliseconds"] == []
    monkeypatch.setattr(models, "measure", None)
    assert bench(*arguments) == 0
    assert json.loads(out.read_text()) == result

    (page,) = write([out], tmp_path / "pages")
    text = page.read_text()
    assert page.name == "models.md" and "## qwen3.6-27b" in text and "does not support" in text
    assert text.count("Commit ") == 1

    result["runs"][0]["how"] = "a process for each way"
    out.write_text(json.dumps(result))
    (page,) = write([out], tmp_path / "pages")
    assert "; a process for each way." in page.read_text()


def test_attention_is_what_the_rest_of_the_model_leaves(tmp_path):
    out = tmp_path / "models.json"
    arguments = ["--only", "gpt*", "--lengths", "64", "--ways", "eager,rest", "--json", str(out)]
    with torch.compiler.set_stance("default", force_backend="eager"):
        assert bench(*arguments) == 0
    result = json.loads(out.read_text())
    eager, rest = result["runs"][0]["rows"]
    assert eager["error"] == rest["error"] == "" and rest["difference"] > 0.01
    eager["median_ms"], rest["median_ms"] = 100.0, 40.0
    result["runs"][0]["rows"].append(eager | {"competitor": "sampleattn", "median_ms": 50.0})
    header, _, *lines = (line.split("|")[1:-1] for line in models.table(result["runs"]).splitlines())
    columns = [[cell.strip() for cell in line] for line in zip(header, *lines, strict=True)]
    assert ["attention (ms)", "60.0", "-", "10.0"] in columns
    assert ["attention: faster by", "6.00", "-", "-"] in columns
    assert ["sampleattn is faster by", "2.00", "-", "-"] in columns


def run_in_one_graph(way, model):
    """Logits of a narrow model in a way that compiles, and of how many graphs and breaks it became."""
    counters.clear()
    tokens = torch.randint(0, 128, (1, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.compiler.set_stance("default", force_backend="eager"):
        out = competitors.build(way, model, {}).run(input_ids=tokens, use_cache=True, logits_to_keep=1)
    return out, counters["stats"]["unique_graphs"], len(counters["graph_break"])


def narrow(model):
    case = next(case for case in models.CASES if case.shape == model)
    shape = load_shape(case.shape, layers=case.layers, narrow=True, changed=case.changed)
    return shape.build("cpu", torch.float32)


@pytest.mark.parametrize("model", ["gemma-4-26b-a4b", "deepseek-v3"])
def test_a_model_with_flex_attention_is_one_graph(model):
    _, graphs, breaks = run_in_one_graph("flex", narrow(model))
    assert (graphs, breaks) == (1, 0)


def test_the_delta_rule_that_keeps_dynamo_out_is_one_operator(monkeypatch):
    model = narrow("qwen3.6-27b")
    module = sys.modules[type(model).__module__]
    expected, graphs, _ = run_in_one_graph("inductor", model)
    assert graphs == 1
    # As flash-linear-attention has it.
    rule = torch.compiler.disable(module.torch_chunk_gated_delta_rule.__wrapped__)
    monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", lambda *args, **kwargs: rule(*args, **kwargs))
    with parts.delta_rule_as_one_op(model) as there:
        assert not there
        assert run_in_one_graph("inductor", model)[1] > 4
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", ModuleType("fla"))
    with parts.delta_rule_as_one_op(model) as there:
        assert there
        out, graphs, breaks = run_in_one_graph("inductor", model)
    assert (graphs, breaks) == (1, 0)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_a_slow_way_is_timed_once(tmp_path):
    out = tmp_path / "models.json"
    arguments = ["--only", "qwen*", "--lengths", "64", "--ways", "eager,exact", "--json", str(out)]
    assert bench(*arguments, "--rounds", "3", "--patience", "0") == 0
    eager, exact = json.loads(out.read_text())["runs"][0]["rows"]
    assert eager["milliseconds"] == [1e3 * eager["first_call_seconds"]]
    assert len(exact["milliseconds"]) == 1
    assert exact["milliseconds"][0] != 1e3 * exact["first_call_seconds"]


def test_memory_that_was_asked_for_is_named():
    from sa_compile.lab.bench.ttft import _in_words

    text = "CUDA out of memory. Tried to allocate 128.00 GiB. GPU 0 has a total capacity of 139.80 GiB"
    assert _in_words(torch.OutOfMemoryError(text)) == "out of memory (asked for 128.00 GiB)"
    assert _in_words(RuntimeError(f"backend raised:\n{text}")) == "out of memory (asked for 128.00 GiB)"
    assert _in_words(ValueError("no such way\nat all")) == "ValueError: no such way"
    assert len(_in_words(ValueError("no " * 200))) < 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--only", "gpt5"], "--only: no model 'gpt5'; models: gpt-oss-20b, gemma", id="only"),
        pytest.param(["--ways", "magic"], "--ways: unknown baseline 'magic'", id="way"),
        pytest.param(["--ways", ","], "--ways must name at least one of eager, ", id="no way"),
        pytest.param(["--rounds", "-1"], "--rounds must not be negative, got -1", id="rounds"),
        pytest.param(["--density", "0"], "--density must be in (0, 1], got 0.0", id="density"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    assert bench("--lengths", "64", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_another_benchmark_is_left_alone(tmp_path, capsys):
    out = tmp_path / "ttft.json"
    out.write_text('{"benchmark": "ttft"}')
    assert bench("--lengths", "64", "--json", str(out)) == 2
    assert "holds no result of 'bench models'" in capsys.readouterr().err
    assert out.read_text() == '{"benchmark": "ttft"}'


def test_the_layers_that_are_built_have_the_whole_models_mix():
    for case in models.CASES:
        shape = load_shape(case.shape, layers=case.layers, changed=case.changed)
        assert shape.config.num_hidden_layers == case.layers < shape.all_layers
        if kinds := getattr(shape.config, "layer_types", None):
            every = load_shape(case.shape).config.layer_types
            assert [every[i % case.layers] for i in range(len(every))] == every
            assert kinds == every[: case.layers]
