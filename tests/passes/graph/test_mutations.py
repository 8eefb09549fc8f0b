"""Which in-place operations lie between the creation of a tensor and its reading."""

import torch
from support.graphs import compile_with_passes

from sa_compile.passes.graph.emitter import Emitter
from sa_compile.passes.graph.mutations import Mutations


def written_twice(x):
    made = x * 2
    made[0].add_(1)
    read = made + 1
    made.mul_(3)
    return read, made


def captured():
    graph = compile_with_passes(written_twice, torch.randn(3, 4)).after[0].graph
    return graph, {node.name: node for node in graph.nodes}


def test_writes_through_a_view_count_and_later_ones_do_not():
    graph, nodes = captured()
    writes = Mutations(graph).between(nodes["made"], nodes["read"])
    assert [(writer.name, written.name) for writer, written in writes] == [("add_", "getitem")]


def test_what_replaces_a_tensor_is_written_where_that_was():
    graph, nodes = captured()
    mutations = Mutations(graph)
    new = Emitter(nodes["made"]).function(torch.mul, *nodes["made"].args)
    (output,) = graph.find_nodes(op="output")
    assert mutations.between(new, output) == []
    mutations.replaced(nodes["made"], new)
    writers = [writer.name for writer, _ in mutations.between(new, output)]
    assert writers == ["add_", "mul_"]
    assert mutations.between(new, output)[1][1] is new


def written_inside_vmap(x):
    def one_less(row):
        made = row.new_zeros(4)
        made[1:] = row[1:]
        return made

    return torch.vmap(one_less)(x), x + 1


def test_memory_that_is_not_known_is_not_that_of_tensors_made_before():
    """Tensors inside of vmap have no memory to compare; what they are made of has its own."""
    graph = compile_with_passes(written_inside_vmap, torch.randn(3, 4)).before[0].graph
    (x,) = graph.find_nodes(op="placeholder")
    (written,) = (node for node in graph.nodes if node.target == "new_zeros")
    (output,) = graph.find_nodes(op="output")
    mutations = Mutations(graph)
    assert not mutations.between(x, output) and mutations.between(written, output)
