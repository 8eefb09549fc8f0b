"""The example of tensor parallel, on two processes (gloo)."""

import importlib
import re

import pytest
import torch
import torch.distributed as dist
from support.ranks import TESTS, torchrun


def test_the_example_answers_and_says_how_uneven_the_ranks_are():
    done = torchrun(2, "examples/tensor_parallel.py", "--length", "4400")
    assert done.returncode == 0, done.stderr[-20000:]
    assert re.search(r"model\.layers\.\{0-7\}\.self_attn +sdpa +4/1 .* sampled", done.stdout)
    kept = [float(x) for x in re.search(r"kept on each rank: ([\d., ]+);", done.stdout)[1].split(", ")]
    imbalance = float(re.search(r"largest / mean: ([\d.]+)", done.stdout)[1])
    assert len(set(kept)) == 2 and abs(imbalance - 2 * max(kept) / sum(kept)) < 0.005
    answer, expected = re.search(r"Answer: *(.+?) \(expected: *(.+)\)", done.stdout).groups()
    assert answer.strip() == expected.strip()


def test_heads_that_do_not_divide_are_an_error_that_says_so(monkeypatch):
    monkeypatch.syspath_prepend(TESTS.parent / "examples")
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    example = importlib.import_module("tensor_parallel")
    with pytest.raises(ValueError, match="must divide the model's 2 key/value heads, got 3 ranks"):
        example.load(example.MODEL, torch.device("cpu"))
