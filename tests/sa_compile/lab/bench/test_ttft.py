"""bench ttft: whole models on the CPU, narrow ones, so that it takes seconds."""

import json
from pathlib import Path

import pytest
import torch

from sa_compile.cli import main
from sa_compile.lab.bench.density import at_length, curve
from sa_compile.lab.bench.report import headline, write_headline
from sa_compile.lab.bench.shape import load_shape, shipped
from sa_compile.lab.bench.ttft_table import chart, table

SHAPES = {  # layers, heads, KV heads, head_dim
    "chatglm2-6b": (28, 32, 2, 128),
    "deepseek-v3": (61, 128, 128, 64),  # of its 192 the part that is rotated
    "gemma-4-26b-a4b": (30, 16, 8, 256),
    "glm-4-9b": (40, 32, 2, 128),
    "gpt-oss-20b": (24, 64, 8, 64),
    "internlm2-7b": (32, 32, 8, 128),
    "llama-3.1-8b": (32, 32, 8, 128),
    "mistral-7b": (32, 32, 8, 128),
    "qwen2.5-7b": (28, 28, 4, 128),
    "qwen3.6-27b": (64, 24, 4, 256),
    "yi-9b": (48, 32, 4, 128),
}
MILLIONS = {"chatglm2-6b": 6244, "glm-4-9b": 9400, "internlm2-7b": 7738, "llama-3.1-8b": 8030}
MILLIONS |= {"deepseek-v3": 671026, "gemma-4-26b-a4b": 25233, "gpt-oss-20b": 20915, "qwen3.6-27b": 26896}
MILLIONS |= {"mistral-7b": 7242, "qwen2.5-7b": 7616, "yi-9b": 8829}
SMALL = ["--narrow", "--layers", "2", "--device", "cpu", "--dtype", "float32", "--rounds", "1"]
OPTIONS = ["--option", "min_seq_len=64", "--option", "block_q=16", "--option", "block_k=16"]
EAGERLY = [*OPTIONS, "--option", "inner=eager"]


@pytest.mark.parametrize("name", SHAPES)
def test_the_shipped_shapes_are_the_published_ones(name):
    from transformers import AutoModelForCausalLM

    assert shipped() == sorted(SHAPES)
    shape = load_shape(name)
    config = shape.config
    sizes = config.to_dict()  # Gemma 4's config refuses to name a head dim that its layers do not share
    head_dim = sizes.get("head_dim") or config.hidden_size // config.num_attention_heads
    found = (config.num_hidden_layers, config.num_attention_heads, sizes["num_key_value_heads"], head_dim)
    assert found == SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], rel=0.002)


def ttft(*arguments):
    return main(["bench", "ttft", *arguments])


def test_every_competitor_has_a_row_and_sampleattn_the_density_that_was_set(tmp_path, capsys):
    out = tmp_path / "ttft.json"
    arguments = ["--model", "glm-4-9b", "--lengths", "512", "--baselines", "eager,interface"]
    assert ttft(*arguments, *SMALL, *EAGERLY, "--density", "0.3", "--json", str(out)) == 0
    result = json.loads(out.read_text())
    rows = {row["competitor"]: row for row in result["rows"]}
    assert list(rows) == ["eager", "interface", "sampleattn"]
    for row in rows.values():
        assert (row["layers"], row["all_layers"], len(row["milliseconds"])) == (2, 40, 1)
        assert row["ttft_ms"] == pytest.approx(20 * row["median_ms"])
    for name in ("interface", "sampleattn"):
        assert rows[name]["density"] == pytest.approx(0.3, abs=0.04)
        assert rows[name]["density_source"] == "set (--density)"
        assert rows[name]["outcomes"] == {"sampled": 2}
    assert rows["eager"]["density_source"] == "dense"
    printed = capsys.readouterr().out
    assert "2 layers measured, times scaled to all 40" in printed and "random weights" in printed


def test_a_batch_of_two_and_chunked_mlps(tmp_path):
    out = tmp_path / "ttft.json"
    arguments = ["--model", "qwen2.5-7b", "--lengths", "128,256", "--batch", "2", "--chunked-mlp", "100"]
    assert ttft(*arguments, *SMALL, *EAGERLY, "--json", str(out)) == 0
    result = json.loads(out.read_text())
    assert [row["length"] for row in result["rows"]] == [128, 128, 256, 256]
    assert all(row["batch"] == 2 and row["density"] is None for row in result["rows"])
    assert result["rows"][-1]["density_source"] == "chosen by selection"
    assert result["chunked_mlp"] == 100


def test_goals_memory_and_logits_are_in_the_table(tmp_path, capsys):
    out = tmp_path / "ttft.json"
    arguments = ["--model", "mistral-7b", "--lengths", "64,128", "--goal", "eager=0.0001,1e9"]
    arguments += ["--option", "min_seq_len=1000000", "--revision", "abc123"]
    assert ttft(*arguments, *SMALL, "--option", "inner=eager", "--json", str(out)) == 0
    result = json.loads(out.read_text())
    assert result["revision"] == "abc123" and result["goals"] == {"eager": [0.0001, 1e9]}
    assert [row["difference"] is None for row in result["rows"]] == [True, False] * 2
    assert all(row["difference"] < 1e-5 for row in result["rows"][1::2])
    printed = capsys.readouterr().out
    assert "(>= 0.0001)" in printed and "(>= 1e+09: missed)" in printed


def test_without_rounds_the_first_call_is_the_result(tmp_path, capsys):
    out = tmp_path / "ttft.json"
    rounds = [*SMALL[:-1], "0"]
    assert ttft("--model", "glm-4-9b", "--lengths", "64", *rounds, *EAGERLY, "--json", str(out)) == 0
    for row in json.loads(out.read_text())["rows"]:
        assert row["milliseconds"] == [1e3 * row["first_call_seconds"]]
    assert "one call, compilation included" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--baselines", "flash2"], "flash2 needs a CUDA device, got --device cpu", id="flash2"),
        pytest.param(["--baselines", "magic"], "unknown baseline 'magic'; known: eager", id="baseline"),
        pytest.param(["--density", "2"], r"--density must be in \(0, 1\], got 2.0", id="density"),
        pytest.param(["--rounds", "-1"], "--rounds must not be negative, got -1", id="rounds"),
        pytest.param(["--layers", "99"], "--layers must be between 1 and 40", id="layers"),
        pytest.param(
            ["--goal", "flex=2"], r"--goal needs one of the baselines \(eager\)", id="goal-baseline"
        ),
        pytest.param(["--goal", "eager=2,3"], "and 1 ratios, one a length", id="goal-number"),
        pytest.param(["--goal", "eager=fast"], "BASELINE=RATIOS with numbers, got 'eager=fast'", id="goal"),
        pytest.param(["--option", "alpha"], "--option must be NAME=VALUE", id="option"),
        pytest.param(["--chunked-mlp", "-1"], "'tokens' must be at least 1, got -1", id="chunked-mlp"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    import re

    assert ttft("--model", "glm-4-9b", "--lengths", "64", *SMALL, *arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_model_that_is_not_there_is_named(capsys):
    assert ttft("--model", "nowhere", "--lengths", "64", *SMALL) == 2
    assert "no such folder or config file: nowhere; shipped shapes: chatglm2-6b" in capsys.readouterr().err


@pytest.fixture
def eval_result(tmp_path):
    scores = [
        {"rule": rule, "length": length, "density": density}
        for rule, length, density in [
            ("chunked", 1024, 0.5),
            ("chunked", 1024, 0.3),
            ("chunked", 4096, 0.2),
            ("full", 1024, 1.0),
        ]
    ]
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({"scores": scores}))
    return path


def test_density_from_a_measured_curve(eval_result):
    points = curve(eval_result, "chunked")
    assert points == {1024: 0.4, 4096: 0.2}
    assert at_length(points, 4096) == (0.2, "measured at this length")
    assert at_length(points, 2048) == (
        pytest.approx(0.3),
        "between those measured at 1024 and 4096 tokens",
    )
    assert at_length(points, 1 << 20) == (0.2, "measured at 4096 tokens, held")
    assert at_length(points, 64) == (0.4, "measured at 1024 tokens, held")
    with pytest.raises(ValueError, match="no scores of rule 'stride'.*rules: chunked, full"):
        curve(eval_result, "stride")


def row(name, length, milliseconds, **changes):
    return {
        "competitor": name,
        "length": length,
        "batch": 1,
        "layers": 2,
        "all_layers": 32,
        "ttft_ms": milliseconds,
        "peak_bytes": 3 << 30,
        "density": 0.1 if name == "sampleattn" else None,
        "density_source": "set (--density)",
        "outcomes": {"sampled": 2} if name == "sampleattn" else {},
        "difference": 0.25 if name == "sampleattn" else None,
        "error": "",
        **changes,
    }


@pytest.fixture
def result():
    return {
        "benchmark": "ttft",
        "command": "python -m sa_compile bench ttft",
        "revision": "abc",
        "model": "llama-3.1-8b",
        "dtype": "bfloat16",
        "device": "a GPU",
        "weights": "random",
        "narrow": False,
        "chunked_mlp": None,
        "rounds": 3,
        "goals": {"eager": [1.5, 2.0]},
        "lengths": [8192, 1 << 20],
        "note": "",
        "versions": {"torch": "2.11"},
        "rows": [
            row("eager", 8192, 50.0),
            row("sampleattn", 8192, 40.0),
            row("eager", 1 << 20, 0.0, error="out of memory"),
            row("sampleattn", 1 << 20, 4000.0),
        ],
    }


def test_the_table_is_made_from_the_json(result, tmp_path):
    printed = table(result)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[4:]]
    assert cells[0][:4] == ["8K", "50.0", "40.0", "1.25 (>= 1.5: missed)"]
    assert cells[1][:4] == ["1M", "out of memory", "4,000.0", "-"]
    assert cells[0][4:] == ["3.0 / 3.0", "1.00", "-", "10.0%", "set (--density)"]
    (tmp_path / "r.json").write_text(json.dumps(result))
    assert main(["bench", "report", str(tmp_path / "r.json"), "--out", str(tmp_path / "pages")]) == 0
    page = (tmp_path / "pages" / "ttft.md").read_text()
    assert printed in page and "python -m sa_compile bench ttft" in page
    assert (tmp_path / "pages" / "ttft.png").read_bytes().startswith(b"\x89PNG")


def test_the_headline_joins_the_lengths_of_several_results(result):
    first = {**result, "rows": result["rows"][:2]}
    second = {**result, "rows": result["rows"][2:]}
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in headline([second, first]).splitlines()]
    assert lines[0] == [
        "tokens", "method", "kept", "layers measured",
        "eager (s)", "sampleattn (s)", "times faster than eager",
    ]  # fmt: skip
    assert lines[2] == ["8K", "chunked", "10%", "2 of 32", "0.05", "0.04", "**1.2**"]
    assert lines[3] == ["1M", "chunked", "10%", "2 of 32", "-", "4", "-"]


def test_the_headline_keeps_methods_apart(result):
    lines = headline([result, {**result, "method": "adaptive"}]).splitlines()
    cells = [[c.strip() for c in line.split("|")[1:3]] for line in lines[2:]]
    assert cells == [["8K", "adaptive"], ["8K", "chunked"], ["1M", "adaptive"], ["1M", "chunked"]]


def test_the_readmes_headline_is_what_the_results_say(tmp_path):
    root = Path(__file__).parents[4]
    copy = tmp_path / "README.md"
    copy.write_text((root / "README.md").read_text())
    files = sorted((root / "benchmarks" / "results").glob("h200_ttft_*.json"))
    write_headline(files, "glm-4-9b", copy)
    assert copy.read_text() == (root / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        ("yi-9b", "", "no result of 'bench ttft' with baselines for 'yi-9b'"),
        ("llama-3.1-8b", "x", "needs the"),
    ],
    ids=["model", "marks"],
)
def test_a_headline_needs_results_and_marks(model, text, message, result, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(result))
    (tmp_path / "p.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        write_headline([tmp_path / "r.json"], model, tmp_path / "p.md")


def test_a_page_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "r.json").write_text('{"benchmark": "lunch"}')
    assert main(["bench", "report", str(tmp_path / "r.json"), "--out", str(tmp_path)]) == 2
    assert (
        "must be one of ops, ttft, models, breakdown, lengths, compile for a page" in capsys.readouterr().err
    )


def test_an_exact_prefill_has_no_density(result):
    result["rows"][1] |= {"outcomes": {"exact": 2}, "density": None}
    assert "exact: nothing is sampled" in table(result)


def test_a_chart_has_a_panel_a_model(result, tmp_path):
    from PIL import Image

    other = {**result, "model": "glm-4-9b"}
    once = {**result, "model": "yi-9b", "rounds": 0}
    widths = [
        Image.open(chart(results, tmp_path / f"{number}.png")).width
        for number, results in enumerate([[result], [result, result, once], [result, other]])
    ]
    assert widths[0] == widths[1] and widths[2] == 2 * widths[0]
