"""Sizes as expressions become nodes that have the value of the expression."""

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._sympy.functions import FloorDiv, Mod

from sa_compile.passes.graph.emitter import Emitter
from sa_compile.passes.graph.sizes import SizeNotAvailable, as_expr, emit_size


def symbolic_graph(rows, columns):
    """A graph with one input [rows, columns], both symbolic, and the node that returns it."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 2)
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = mode.from_tensor(torch.empty(rows, columns), symbolic_context=context)
    end = graph.call_method("sum", (x,))
    end.meta["example_value"] = x.meta["example_value"].sum()
    return graph, x, end


def emitted_value(build, rows, columns):
    graph, x, end = symbolic_graph(rows, columns)
    r, c = map(as_expr, x.meta["example_value"].shape)
    size = emit_size(Emitter(end), build(r, c), (x,))
    graph.output((size,))
    return fx.GraphModule({}, graph)(torch.empty(rows, columns))[0]


EXPRESSIONS = [
    pytest.param(lambda r, c: sympy.Integer(7), lambda r, c: 7, id="constant"),
    pytest.param(lambda r, c: r, lambda r, c: r, id="size"),
    pytest.param(lambda r, c: c - r, lambda r, c: c - r, id="difference"),
    pytest.param(lambda r, c: 3 * r * c + 1, lambda r, c: 3 * r * c + 1, id="polynomial"),
    pytest.param(lambda r, c: FloorDiv(r + 5, 16), lambda r, c: (r + 5) // 16, id="quotient"),
    pytest.param(lambda r, c: Mod(r, 4), lambda r, c: r % 4, id="remainder"),
]


@pytest.mark.parametrize("build, expected", EXPRESSIONS)
@settings(deadline=None)
@given(rows=st.integers(2, 60), columns=st.integers(61, 120))
def test_emitted_size_is_the_size(build, expected, rows, columns):
    assert emitted_value(build, rows, columns) == expected(rows, columns)


def test_a_size_read_before_a_guard_made_it_equal_to_another_is_found():
    graph, x, end = symbolic_graph(48, 48)
    rows, columns = x.meta["example_value"].shape
    before = [as_expr(rows), as_expr(columns)]
    assert rows == columns  # the guard
    sizes = [emit_size(Emitter(end), expr, (x,)) for expr in before]
    graph.output(tuple(sizes))
    assert fx.GraphModule({}, graph)(torch.empty(48, 48)) == (48, 48)


def test_a_symbol_that_is_no_size_is_refused():
    _, x, end = symbolic_graph(4, 5)
    with pytest.raises(SizeNotAvailable, match="unknown"):
        emit_size(Emitter(end), sympy.Symbol("unknown", integer=True) + 1, (x,))
