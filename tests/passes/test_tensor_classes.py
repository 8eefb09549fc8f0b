"""Tensors of a class with rules of its own: what an operation does to them is the class's to say."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import LENGTH, SCALE, added, allowed, full
from support.graphs import PassesBackend, compile_with_passes
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Doubling(torch.Tensor):
    """A softmax that is none, masks that let everything through, and an SDPA of twice the value."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, requires_grad=False
        )

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Doubling(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args, kwargs = torch.utils._pytree.tree_map_only(Doubling, lambda x: x.inner, (args, kwargs or {}))
        out = function(*args, **kwargs)
        exchanged = (torch.ops.aten._softmax, torch.ops.aten.tril, torch.ops.aten.transpose)
        if function.overloadpacket in exchanged:
            out = out + 1.0
        return torch.utils._pytree.tree_map_only(torch.Tensor, Doubling, out)


def by_method(q, k, v):
    return ((q @ k.transpose(-1, -2) * SCALE + added()).softmax(-1)) @ v


def by_function(q, k, v):
    scores = torch.matmul(q, torch.transpose(k, -1, -2)) * SCALE
    return torch.matmul(torch.softmax(scores.masked_fill(~allowed(), float("-inf")), -1), v)


def sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("attention", [by_method, by_function, sdpa])
def test_attention_of_another_class_is_kept(attention):
    q, k, v = map(Doubling, full())
    assert is_traceable_wrapper_subclass(q)
    backend = PassesBackend()
    with torch.no_grad():
        expected = attention(q, k, v)
        actual = torch.compile(attention, backend=backend)(q, k, v)
    assert not any(record.rewritten for record in backend.records)
    torch.testing.assert_close(actual.inner, expected.inner)


def test_sdpa_on_another_class_has_a_row():
    backend = PassesBackend()
    with torch.no_grad():
        torch.compile(sdpa, backend=backend)(*map(Doubling, full()))
    (record,) = backend.records
    assert record.reason == "SDPA on tensors of a class of its own: Doubling"


def test_a_mask_of_another_class_is_not_proven():
    def attention(q, k, v, ones):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(ones.tril() > 0.5).inner)

    backend = PassesBackend()
    tensors = (*full(), Doubling(torch.ones(LENGTH, LENGTH)))
    with torch.no_grad():
        expected = attention(*tensors)
        torch.testing.assert_close(torch.compile(attention, backend=backend)(*tensors), expected)
    assert not any(record.rewritten for record in backend.records)


class Overriding(torch.Tensor):
    """Methods of its own; Dynamo writes down what they call."""

    def softmax(self, dim):
        """Shares without an exponential."""
        kept = torch.relu(self)
        return kept / kept.sum(dim, keepdim=True).clamp(min=1e-3)


def test_methods_of_a_subclass_are_not_torchs():
    backend = PassesBackend()
    tensors = [x.as_subclass(Overriding) for x in full()]

    def attention(q, k, v):
        return ((q @ k.transpose(-1, -2)) * SCALE).softmax(-1) @ v

    with torch.no_grad():
        expected = attention(*tensors)
        torch.testing.assert_close(torch.compile(attention, backend=backend)(*tensors), expected)
    assert not any(record.rewritten for record in backend.records)


def test_an_exchanged_method_is_not_torchs(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "softmax", Overriding.softmax)
    backend = compile_with_passes(by_method, *full())
    assert not any(record.rewritten for record in backend.records)
