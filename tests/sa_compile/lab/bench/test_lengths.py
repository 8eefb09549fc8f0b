"""bench lengths: prompts of random lengths through one compiled model, on the CPU with a narrow one."""

import json

import pytest

from sa_compile.cli import main
from sa_compile.lab.bench.lengths import MIB, Prompt, growth, random_lengths, table

SMALL = ["--model", "glm-4-9b", "--narrow", "--layers", "2", "--device", "cpu", "--dtype", "float32"]
OPTIONS = ["--option", "inner=eager", "--option", "min_seq_len=513"]
OPTIONS += ["--option", "block_q=16", "--option", "block_k=16"]


def prompts(*held, graphs=1):
    return [Prompt(100, 0.1, graphs, size * MIB, None) for size in held]


def test_many_lengths_cost_few_graphs(tmp_path, capsys):
    out = tmp_path / "lengths.json"
    arguments = ["--prompts", "8", "--shortest", "2", "--longest", "900", "--json", str(out)]
    assert main(["bench", "lengths", *SMALL, *OPTIONS, *arguments]) == 0
    result = json.loads(out.read_text())
    assert [p["length"] for p in result["prompts"]] == random_lengths(8, 2, 900, 0)
    counts = [p["graphs"] for p in result["prompts"]]
    assert counts == sorted(counts) and 1 <= counts[-1] <= 3
    assert all(p["held_bytes"] > 0 and p["reserved_bytes"] is None for p in result["prompts"])
    assert "| prefill graphs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("held", "mib"),
    [((9, 8, 5, 5, 5), 0), ((1, 2, 5, 7, 6), 2), ((1, 2, 5, 4, 3), -1), ((1, 2, 3), 0), ((1,), 0)],
    ids=["settled", "grew", "shrank", "three prompts", "one prompt"],
)
def test_growth_counts_from_the_third_prompt(held, mib):
    assert growth(prompts(*held)) == mib * MIB


def test_the_table_holds_what_was_found_against_what_is_wanted():
    result = {"model": "m", "layers": 2, "device": "a GPU", "dtype": "bfloat16"}
    result["prompts"] = [vars(p) for p in prompts(1, 2, 5, 7, graphs=4)]
    lines = [" ".join(line.split()) for line in table(result).splitlines()]
    assert "| prefill graphs | 4 | <= 3 |" in lines
    assert any(line.startswith("| MiB held more than after prompt 3 | 2") for line in lines)


def test_the_page_is_made_from_the_json(tmp_path):
    result = {"benchmark": "lengths", "model": "m", "layers": 2, "device": "a GPU", "dtype": "bfloat16"}
    result |= {"command": "python -m sa_compile bench lengths", "revision": "abc"}
    result["prompts"] = [vars(p) for p in prompts(1, 2, 3, 3)]
    (tmp_path / "r.json").write_text(json.dumps(result))
    assert main(["bench", "report", str(tmp_path / "r.json"), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "lengths.md").read_text()
    assert table(result) in page and "Commit abc." in page


def test_bad_lengths_are_named(capsys):
    assert main(["bench", "lengths", *SMALL, "--shortest", "10", "--longest", "5"]) == 2
    assert "2 <= --shortest <= --longest, got 50, 10 and 5" in capsys.readouterr().err
