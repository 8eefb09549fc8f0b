"""bench breakdown and bench compile, end to end on the CPU."""

import json

import pytest

from sa_compile.cli import main
from sa_compile.lab.bench.compile_time import table

MODEL = ["--model", "llama-3.1-8b", "--narrow", "--layers", "2", "--device", "cpu", "--dtype", "float32"]
OPTIONS = ["--option", "min_seq_len=64", "--option", "block_q=16", "--option", "block_k=16"]


def test_breakdown_prints_a_row_a_layer_and_draws_it(tmp_path, capsys):
    out, picture = tmp_path / "b.json", tmp_path / "b.png"
    arguments = [*MODEL, *OPTIONS, "--option", "inner=eager", "--lengths", "512", "--density", "0.3"]
    arguments += ["--rounds", "2", "--json", str(out), "--chart", str(picture)]
    assert main(["bench", "breakdown", *arguments]) == 0
    result = json.loads(out.read_text())
    assert len(result["layers"]) == 3 and result["whole_ms"] > 0
    printed = capsys.readouterr().out
    assert "| after the last" in printed and "| share" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_breakdown_tells_the_rule_by_rows_apart_from_the_rest(tmp_path):
    out = tmp_path / "b.json"
    arguments = [*MODEL, *OPTIONS, "--option", "inner=eager", "--option", "method=adaptive"]
    arguments += ["--lengths", "512", "--rounds", "1", "--json", str(out)]
    assert main(["bench", "breakdown", *arguments]) == 0
    layers = json.loads(out.read_text())["layers"]
    assert len(layers) == 3
    assert all(layer[part] > 0 for layer in layers[:2] for part in ("sampling", "selection", "attention"))


def goals_of(*entries):
    result = {"model": "glm-4-9b", "layers": 40, "device": "a CPU", "compile": list(entries)}
    _, _, *goals = table(result).split("\n\n")
    return [line.split("|")[2:5] for text in goals for line in text.splitlines()[2:]]


def entry(competitor, passes, everything):
    times = {"passes": passes, "backend": everything / 2, "everything": everything, "first_call": everything}
    return {"competitor": competitor, "cold": times, "warm": times}


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        pytest.param(
            [entry("inductor", 0, 10.0), entry("sampleattn", 0.3, 40.0)],
            [["0.30 s", "<= 2 s", "met"], ["3.0%", "<= 5%", "met"]],
            id="beside Inductor",
        ),
        pytest.param(
            [entry("sampleattn", 2.5, 22.5)],
            [["2.50 s", "<= 2 s", "MISSED"], ["12.5%", "<= 5%", "MISSED"]],
            id="alone: beside the rest of its own",
        ),
        pytest.param([entry("inductor", 0, 10.0)], [], id="no passes, no goals"),
    ],
)
def test_compile_says_whether_warm_passes_are_cheap_enough(entries, found):
    assert [[cell.strip() for cell in line] for line in goals_of(*entries)] == found


def test_compile_measures_two_processes_that_share_a_cache(tmp_path, capsys):
    out = tmp_path / "c.json"
    arguments = [*MODEL, *OPTIONS, "--lengths", "128", "--baselines", "", "--json", str(out)]
    assert main(["bench", "compile", *arguments]) == 0
    (entry,) = json.loads(out.read_text())["compile"]
    cold, warm = entry["cold"], entry["warm"]
    for times in (cold, warm):
        assert 0 < times["passes"] < times["backend"] < times["everything"] < times["first_call"]
    assert warm["backend"] < cold["backend"]
    assert "passes / rest of the backend" in capsys.readouterr().out


def test_compile_refuses_what_is_not_compiled(capsys):
    assert main(["bench", "compile", *MODEL, "--lengths", "128", "--baselines", "eager"]) == 2
    assert "'eager' is not compiled" in capsys.readouterr().err
