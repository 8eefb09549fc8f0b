"""Only what a rewrite left without readers goes; effects stay."""

import torch
import torch.nn.functional as F
from support.attention import LENGTH, full, grouped, repeat_kv
from support.graphs import compile_with_passes, operation_name
from torch import fx

from sa_compile.passes.rewrite.dead_code import remove_unused

sdpa = F.scaled_dot_product_attention


def names(backend):
    return [operation_name(node) for node in backend.after[0].graph.nodes]


def test_mask_made_in_place_goes():
    def function(q, k, v):
        mask = torch.full((LENGTH, LENGTH), float("-inf"))
        mask.triu_(1)
        return sdpa(q, k, v, attn_mask=mask)

    backend = compile_with_passes(function, *full())
    assert backend.outcomes == [("sampled", "sampled")]
    assert "full" not in names(backend)


def test_writes_into_a_cache_stay():
    def function(q, k, v, cache):
        cache[:, :, :LENGTH].copy_(k)
        return sdpa(q, repeat_kv(cache[:, :, :LENGTH]), repeat_kv(v), is_causal=True)

    q, k, v = grouped()
    cache, expected = torch.zeros(2, 2, 64, 16), torch.zeros(2, 2, 64, 16)
    backend = compile_with_passes(lambda q, k, v: function(q, k, v, expected.clone()), q, k, v)
    assert backend.outcomes == [("sampled", "sampled")]
    torch.compile(function, backend=backend)(q, k, v, cache)
    assert torch.equal(cache[:, :, :LENGTH], k)


def test_unused_nodes_that_were_there_before_stay():
    def function(q, k, v):
        torch.randn(3)
        return sdpa(q, k, v, is_causal=True)

    assert "randn" in names(compile_with_passes(function, *full()))


def graph_of(function):
    return fx.symbolic_trace(function).graph


def test_readers_go_before_what_they_read():
    graph = graph_of(lambda x: [x + 1, ((x * 2) - 3).sum()][0])
    unread = next(node for node in graph.nodes if operation_name(node) == "sum")
    remove_unused(graph, [], [unread])
    assert [operation_name(node) for node in graph.nodes] == ["", "add", ""]


def test_a_write_into_a_tensor_that_is_read_stays():
    def function(x):
        y = x * 2
        y.add_(1)
        return y

    graph = graph_of(function)
    remove_unused(graph, [], list(graph.nodes))
    assert [operation_name(node) for node in graph.nodes] == ["", "mul", "add_", ""]
