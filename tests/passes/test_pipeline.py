"""The passes run in one order, and each has a name in the traces."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from support.graphs import compile_with_passes

PASSES = ["scan", "subgraphs", "match", "prove", "decide", "rewrite", "record", "outputs", "clean_up"]


def two_layers(q, k, v):
    return F.scaled_dot_product_attention(F.scaled_dot_product_attention(q, k, v, is_causal=True), k, v)


@torch.compiler.nested_compile_region
def region(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def calls_a_region(q, k, v):
    return region(region(q, k, v), k, v)


def operands():
    return [torch.randn(1, 2, 64, 16) for _ in range(3)]


@pytest.fixture
def traced():
    """What torch's structured trace receives."""
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append((record.metadata, record.payload))

    logger, handler = logging.getLogger("torch.__trace"), Handler()
    logger.addHandler(handler)
    yield seen
    logger.removeHandler(handler)


def passes_in(traced):
    """Runs by the name of the pass, in order, as the only artifact of ours has them."""
    (payload,) = [text for metadata, text in traced if _name(metadata) == "sampleattn_passes"]
    return {name: runs["calls"] for name, runs in json.loads(payload).items()}


def _name(metadata):
    return metadata.get("artifact", {}).get("name")


def test_every_pass_is_named_in_torchs_trace(traced):
    compile_with_passes(two_layers, *operands(), min_seq_len=32)
    calls = passes_in(traced)
    assert list(calls) == PASSES
    assert [calls[name] for name in PASSES] == [1, 1, 1, 2, 2, 2, 2, 1, 1]


def test_the_same_passes_run_over_child_graphs(traced):
    compile_with_passes(calls_a_region, *operands(), min_seq_len=32)
    calls = passes_in(traced)
    assert sorted(calls) == sorted(PASSES)
    assert (calls["scan"], calls["prove"]) == (2, 1)


def test_the_trace_folder_names_every_pass(tmp_path):
    options = {"trace": str(tmp_path), "inner": "eager"}
    with torch.no_grad():
        torch.compile(two_layers, backend="sampleattn", options=options)(*operands())
    (file,) = tmp_path.glob("*-passes.json")
    passes = json.loads(file.read_text())
    assert list(passes) == PASSES
    assert all(runs["ms"] >= 0 for runs in passes.values())


def test_a_trace_folder_that_can_not_be_made_is_an_error_of_the_option(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        compiled = torch.compile(two_layers, backend="sampleattn", options={"trace": str(folder)})
        with pytest.raises(RuntimeError, match=f"option 'trace': cannot make the folder '{folder}'"):
            compiled(*operands())
