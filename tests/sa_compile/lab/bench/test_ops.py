"""``bench ops``: what its cases run and count, and its report. Timing itself needs a GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sa_compile.cli import main
from sa_compile.kernels import ops
from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared import reference as shared_reference
from sa_compile.lab.bench import report
from sa_compile.lab.bench.ops import inputs, problems, timing
from sa_compile.lab.bench.ops.cases import CASES, Goal, chosen
from sa_compile.lab.bench.ops.inputs import Shape
from sa_compile.lab.bench.ops.run import measure, reached

FIXTURE = Path(__file__).parent / "data" / "bench_ops.json"
LENGTH = 512


@pytest.fixture(autouse=True)
def no_choice_of_kernels(monkeypatch):
    """On a CPU there is nothing to choose, and Triton, which cases name, may not be installed."""
    monkeypatch.setattr(problems, "_on", lambda kernel, function: function())


def small(case):
    """The case on few tokens and heads, without competitors that need a GPU."""
    shape = replace(case.shape, length=LENGTH, heads=2, kv_heads=1)
    return replace(case, shape=shape, against=(), goals=(), rounds=2, repeats=3)


def times(function, repeats):
    function()
    return [2.0] * repeats


def test_every_case_has_a_name_of_its_own_and_goals_about_its_own_runs():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        runs = set(measure(small(case), "cpu", times)["milliseconds"]) | set(case.against)
        for goal in case.goals:
            assert set(goal.over + goal.under) <= runs, case.name


@pytest.mark.parametrize("case", [case for case in CASES if case.name.endswith("128k")], ids=lambda c: c.name)
def test_every_kind_of_case_runs(case):
    row = measure(small(case), "cpu", times)
    assert row["errors"] == {} and "error" not in row
    assert 0 < row["kept"] <= 1
    assert set(row["milliseconds"].values()) == {2.0}
    for name, rate in row["tflops"].items():
        assert 0 < rate * 2e9 <= 4 * 256 * LENGTH * LENGTH * 2, name


@pytest.mark.parametrize("block_k", [64, 128])
def test_kept_entries_are_those_that_the_oracle_sees(block_k):
    kept = inputs.random_blocks(3, LENGTH, 0.4, "cpu", block_k)
    mask = blocks.pack_bits(kept)
    rows = torch.arange(LENGTH)
    seen = shared_reference.visible_entries(rows, LENGTH, causal=True)[:, None]
    seen = seen & shared_reference.kept_entries(mask, rows, LENGTH, inputs.BLOCK, block_k)
    assert inputs.kept_entries(mask, LENGTH, block_k) == seen.sum().item()


def test_all_blocks_are_as_much_work_as_dense_attention():
    shape = Shape(LENGTH, head_dim=192, value_head_dim=128, heads=2)
    mask = blocks.pack_bits(inputs.random_blocks(2, LENGTH, 1.0, "cpu"))
    entries = inputs.kept_entries(mask, LENGTH)
    assert entries == inputs.causal_entries(shape) == 2 * LENGTH * (LENGTH + 1) // 2
    assert inputs.attention_flops(entries, shape) == entries * 2 * 320


@pytest.mark.parametrize("block_k, blocks_each", [(128, 1), (64, 2)], ids=["128", "64"])
def test_scattered_blocks_are_as_many_in_every_row(block_k, blocks_each):
    kept = inputs.random_blocks(4, 2048, 0.3, "cpu")
    scattered = inputs.blocks_as_many_as(kept, 2048, block_k, blocks_each)
    assert torch.equal(scattered.sum(-1), kept.sum(-1) * blocks_each)
    assert scattered[..., 0].all()
    entries = [
        inputs.kept_entries(blocks.pack_bits(x), 2048, k) for x, k in ((kept, 128), (scattered, block_k))
    ]
    assert entries[0] == entries[1]


@pytest.mark.parametrize("wanted", [0.05, 0.1, 0.3])
def test_selection_keeps_the_density_asked_for_with_a_budget_per_head(wanted):
    mask = inputs.selected_blocks(8, 65536, wanted, "cpu")
    density = blocks.density(mask, 65536, 65536, 0, 128, 128)
    assert density.mean() == pytest.approx(wanted, abs=0.005)
    assert density.std() > 0.002


def test_weights_spread_whatever_scores_there_are():
    scores = inputs.flat_scores(4, 32768, "cpu")
    scores = (scores[0] * torch.linspace(1, 3, 256), scores[1] * torch.linspace(3, 1, 256))
    weights, weighted = inputs.spread_scores(scores, 32768, 0.2)
    for one, weight, both in zip(scores, weights, weighted, strict=True):
        assert torch.equal(one * weight, both)
    mask = ops.select_blocks(*weighted, q_len=32768, kv_len=32768)
    assert blocks.density(mask, 32768, 32768, 0, 128, 128).mean() == pytest.approx(0.2, abs=0.005)


def test_functions_take_turns_and_one_that_fails_leaves_the_others():
    order = []

    def fails():
        raise RuntimeError("no kernel\nbecause")

    functions = {"a": lambda: order.append("a"), "bad": fails, "b": lambda: order.append("b")}
    found, errors = timing.in_turn(functions, 3, 2, times)
    assert order == ["a", "b"] * 3
    assert found == {"a": [2.0] * 6, "b": [2.0] * 6}
    assert errors == {"bad": "RuntimeError: no kernel"}


@pytest.mark.parametrize(
    "goal, ratio, met",
    [
        (Goal(("x", "y"), ("z",), 0.5, at_least=False), 0.3, True),
        (Goal(("z",), ("x",), 11), 10, False),
        (Goal(("x",), ("z",), 1, quantity="tflops"), 4, True),
        (Goal(("missing",), ("z",), 1), None, None),
    ],
    ids=["sum", "missed", "rate", "failed run"],
)
def test_goals_are_ratios_of_medians(goal, ratio, met):
    row = {"milliseconds": {"x": 1.0, "y": 2.0, "z": 10.0}, "tflops": {"x": 400.0, "z": 100.0}}
    found = reached(goal, row)
    assert found["ratio"] == (pytest.approx(ratio) if ratio is not None else None)
    assert found["reached"] is met


def test_cases_are_chosen_by_pattern():
    whole = ["whole_128k", "whole_32k", "whole_1m"]
    assert [case.name for case in chosen(["whole_[0-9]*"])] == whole
    assert {case.name for case in chosen(["whole_*"])} == {
        *whole,
        "whole_adaptive_128k",
        "whole_adaptive_32k",
    }
    assert chosen([]) == CASES
    with pytest.raises(ValueError, match="'fast' fits none of the cases: random_128k, "):
        chosen(["fast"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_without_a_cuda_device_the_command_says_so(tmp_path, capsys):
    assert main(["bench", "ops", "--json", str(tmp_path / "out.json")]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_the_report_shows_goals_times_failures_and_what_was_left_out(tmp_path, capsys):
    assert main(["bench", "report", str(FIXTURE), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "ops.md").read_text()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| random_32k | 0.110 | flex / ours | 2.000 | >= 1.5 | |" in lines
    assert "| random_32k | 0.110 | ours | 1.5 | 1.10 | 650 | |" in lines
    assert "| whole_32k | 0.100 | cudnn / whole | 4.000 | >= 9 | missed |" in lines
    assert any(line.endswith("| whole | 3 | 1.20 | | 40 MiB |") for line in lines)
    assert "* whole_32k, fa2: RuntimeError: No available kernel." in lines
    assert "* whole_1m: OutOfMemoryError: CUDA out of memory." in lines
    assert "Not measured, for time: dense_32k." in lines
    assert "python -m sa_compile bench ops --json results.json" in text
    assert (tmp_path / "density.png").stat().st_size > 0
    assert (tmp_path / "length.png").stat().st_size > 0


def test_two_results_have_plots_of_their_own(tmp_path):
    names = [path.name for path in report.write([FIXTURE, FIXTURE], tmp_path)]
    assert names == ["ops.md", "density.png", "length.png", "2_density.png", "2_length.png"]
