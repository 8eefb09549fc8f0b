"""bench memory: what a prefill holds at its peak, computed without a GPU."""

import json

import pytest
import torch

from sa_compile.cli import main
from sa_compile.lab.bench.memory import plan
from sa_compile.lab.bench.shape import load_shape

BF16 = 2


def glm(length, layers=2, chunk=None):
    shape = load_shape("glm-4-9b", layers=layers)
    return plan(shape, length, torch.bfloat16, batch=1, chunk=chunk, options={})


def test_weights_and_cache_are_what_the_shape_says():
    found = glm(1 << 17)
    assert found.kv_cache == 2 * 2 * 2 * 128 * (1 << 17) * BF16  # layers, K and V, heads, head_dim
    embedding = 151552 * 4096 * BF16
    assert 2 * embedding < found.weights < 2 * embedding + (1 << 30)


def test_the_rest_holds_the_hidden_states_and_no_scores():
    length = 1 << 17
    hidden = length * 4096 * BF16
    found = glm(length, chunk=4096)
    assert 3 * hidden < found.other < 9 * hidden
    assert found.other < length * length  # not even a bool mask


def test_chunked_mlps_take_less_and_another_layer_adds_its_weights_and_cache():
    length = 1 << 17
    whole, chunked = glm(length), glm(length, chunk=8192)
    assert whole.other - chunked.other > length * 13696 * BF16
    assert glm(length, layers=3, chunk=8192).other == pytest.approx(chunked.other, rel=0.02)


def test_end_to_end_says_what_fits(tmp_path, capsys):
    out = tmp_path / "memory.json"
    arguments = ["--model", "glm-4-9b", "--layers", "1", "--lengths", "8K,1M", "--memory", "40"]
    assert main(["bench", "memory", *arguments, "--json", str(out), "--revision", "abc"]) == 0
    result = json.loads(out.read_text())
    assert [one["length"] for one in result["plans"]] == [8192, 1 << 20]
    assert result["revision"] == "abc"
    cells = [line.split("|")[-2].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    assert cells[0] == "fits 40 GiB" and cells[2:] == ["yes", "NO"]
