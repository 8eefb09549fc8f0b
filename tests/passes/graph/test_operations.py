"""The identity of operations: one name for every spelling of torch's own, none for anything else."""

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from support.namesakes import namesakes
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from sa_compile.passes.graph.operations import calls, describe, is_higher_order, operation


def node(op, target, *args):
    """A node on a 2-D fake tensor, and on further arguments."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = FakeTensorMode().from_tensor(torch.ones(3, 3))
    made = graph.create_node(op, target, (x, *args))
    made.meta["example_value"] = x.meta["example_value"]
    return made


def function(target, *args):
    return node("call_function", target, *args)


SPELLINGS = {
    "softmax": [
        torch.softmax,
        F.softmax,
        torch.Tensor.softmax,
        torch.ops.aten.softmax,
        torch.ops.aten.softmax.int,
    ],
    "add": [torch.add, operator.add, torch.Tensor.add, torch.Tensor.__add__, torch.ops.aten.add.Tensor],
    "iadd": [operator.iadd, torch.Tensor.__iadd__],
    "rsub": [torch.rsub, torch.Tensor.__rsub__, torch.ops.aten.rsub.Scalar],
    "matmul": [torch.matmul, operator.matmul, torch.Tensor.matmul, torch.ops.aten.matmul],
    "einsum": [torch.einsum, torch.functional.einsum],
    "dropout": [F.dropout, torch.dropout, torch.ops.aten.dropout.default],
    "getitem": [operator.getitem, torch.Tensor.__getitem__],
    "mT": [torch.ops.aten.mT, torch.ops.aten.mT.default],
    "T": [torch.ops.aten.numpy_T],
    "H": [torch.ops.aten.matrix_H],
}


@pytest.mark.parametrize("name, target", [(name, one) for name, all in SPELLINGS.items() for one in all])
def test_a_function_of_torch_has_its_name(name, target):
    assert operation(function(target)) == name and calls(function(target), "other", name)


@pytest.mark.parametrize(
    "method, name",
    [("softmax", "softmax"), ("__getitem__", "getitem"), ("__rsub__", "rsub"), ("mul_", "mul_")],
)
def test_a_method_of_a_tensor_has_its_name(method, name):
    assert operation(node("call_method", method)) == name


@pytest.mark.parametrize("attribute", ["mT", "T", "H", "mH", "data"])
def test_reading_an_attribute_is_an_operation(attribute):
    assert operation(function(getattr, attribute)) == attribute


def test_other_things_have_no_name():
    def softmax(x, dim):
        return x

    class Namesake:
        def softmax(self, x):
            return x

    own = namesakes("custom op").softmax
    qualified = (own._opoverload, own._opoverload.overloadpacket, torch.ops.prims.where.default)
    for target in (softmax, Namesake().softmax, *qualified, math.floor, torch.masked.softmax, float):
        assert operation(function(target)) == "", target
    assert operation(node("call_method", "no_such_method")) == ""
    assert operation(function(getattr, "no_such_attribute")) == ""


def test_a_name_that_was_given_counts_for_nothing():
    def mine(x, dim):
        return x

    mine.__name__ = mine.__qualname__ = "softmax"
    mine.__module__ = "torch.nn.functional"
    assert operation(function(mine)) == ""


def test_an_exchanged_function_is_not_torchs(monkeypatch):
    own = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, dim: x)
    assert operation(function(torch.softmax)) == "" and operation(function(own)) == "softmax"
    monkeypatch.setattr(torch.Tensor, "tril", lambda x: x)
    assert operation(node("call_method", "tril")) == ""


def test_a_decorated_function_of_torch_stays_what_it_is():
    assert operation(function(torch.Tensor.split)) == "split"
    assert operation(function(torch.special.softmax)) == "special_softmax"


def test_a_higher_order_operator_is_known_by_its_class():
    checkpoint = torch.ops.higher_order.tag_activation_checkpoint
    assert is_higher_order(function(checkpoint), "invoke_subgraph", "tag_activation_checkpoint")
    assert not is_higher_order(function(checkpoint), "invoke_subgraph")
    assert not is_higher_order(function(torch.softmax), "softmax")


def test_reasons_tell_a_namesake_from_torchs():
    assert describe(function(torch.softmax)) == "'softmax'"
    assert describe(function(namesakes("custom op").softmax._opoverload)) == "'mylib::softmax'"
    assert describe(node("call_method", "mT")) == "call_method 'mT'"
