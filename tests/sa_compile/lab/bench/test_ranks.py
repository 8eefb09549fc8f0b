"""Benchmarks of several ranks: the parts that need one."""

import pytest
import torch

from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels.shared.blocks import causal_blocks, pack_bits
from sa_compile.lab.bench import rank_shares
from sa_compile.lab.bench.ranks import _arguments, imbalances


def test_rows_in_turn_keep_causal_work_even():
    mask = pack_bits(causal_blocks(6400, 6400, 0, 100, 100, torch.device("cpu")))[None, None]
    found = imbalances(mask, 2)
    assert found["interleaved"] == pytest.approx(2 * 33 / 65)  # blocks 2, 4, .., 64 of 64, by their mean
    assert found["contiguous"] == pytest.approx(2 * (33 + 64) * 16 / (65 * 32))
    assert found["head-tail"] == pytest.approx(1.0)


@torch.no_grad()
def test_the_shares_of_ranks_are_measured_at_the_density_asked_for():
    config = SampleAttentionConfig(block_q=32, block_k=32, min_seq_len=32)
    found = rank_shares.measured(512, 0.5, torch.device("cpu"), config)
    assert len(found["2"]) == 2 and len(found["4"]) == 4 and found["one"] > 0
    assert found["density"] == pytest.approx(0.5, abs=0.1)


GIVEN = ["--lengths", "64", "128", "--density", "0.5", "0.1"]


def test_the_command_of_a_result_says_all_that_decides_it():
    said = "--model llama-3.1-8b --layers 2 --narrow --lengths 64 128 --density 0.5 0.1 --only cp --compiled"
    given = [*GIVEN, "--only", "cp", "--narrow", "--compiled", "--json", "x.json"]
    assert _arguments(given).said == f"{said} --repeats 3"
    assert "--narrow" not in _arguments(GIVEN).said and "--chunked-mlp" not in _arguments(GIVEN).said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(
            ["--density", "0.5"], "--density must be as many numbers as --lengths (2), got 1", id="few"
        ),
        pytest.param(["--density", "0.5", "1.5"], "--density must be in (0, 1], got 0.5 1.5", id="density"),
        pytest.param(["--repeats", "0"], "--repeats must be at least 1, got 0", id="repeats"),
    ],
)
def test_bad_arguments_are_named(given, message, capsys):
    for of in (_arguments, *([rank_shares._arguments] if "--density" in given else [])):
        with pytest.raises(SystemExit):
            of([*GIVEN, *given])
        assert message in capsys.readouterr().err
