"""Attention inside torch.func's transforms stays as it was, with the reason; outside it is rewritten."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import LENGTH
from support.graphs import compile_with_passes

sdpa = F.scaled_dot_product_attention


def causal(q, k, v):
    return sdpa(q, k, v, is_causal=True)


def masked(q, k, v):
    return sdpa(q, k, v, attn_mask=torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril())


def written_out(q, k, v):
    mask = torch.full((q.shape[-2], k.shape[-2]), float("-inf")).triu(1)
    return (q @ k.mT * 0.25 + mask).softmax(-1) @ v


def tensors(length, *batch):
    return [torch.randn(*batch, 2, length, 16) for _ in range(3)]


SPELLINGS = [causal, masked, written_out]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("length", [LENGTH, 16], ids=["long", "short"])
@pytest.mark.parametrize("batch", [(3,), (3, 2)], ids=["of rank 3", "of rank 4"])
def test_vmap(spelling, length, batch):
    def function(q, k, v):
        return torch.func.vmap(spelling)(q, k, v)

    backend = compile_with_passes(function, *tensors(length, *batch))
    assert [(record.outcome, record.reason) for record in backend.records] == [
        ("kept", "inside torch.func.vmap")
    ]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_beside_vmap_attention_is_sampled(spelling):
    def function(q, k, v):
        return spelling(torch.func.vmap(spelling)(q, k, v), k, v)

    backend = compile_with_passes(function, *tensors(LENGTH, 3))
    assert sorted(record.outcome for record in backend.records) == ["kept", "sampled"]


def test_grad():
    def function(q, k, v):
        return torch.func.grad(lambda q: causal(q, k, v).square().sum())(q)

    backend = compile_with_passes(function, *tensors(LENGTH, 3))
    assert [record.reason for record in backend.records] == ["inside torch.func.grad"]


def test_jvp():
    def function(q, k, v):
        return torch.func.jvp(lambda q: written_out(q, k, v), (q,), (torch.ones_like(q),))

    backend = compile_with_passes(function, *tensors(LENGTH, 3))
    assert [record.reason for record in backend.records] == ["inside forward-mode AD"]


@torch.no_grad()
@pytest.mark.parametrize("inner", ["inductor", "aot_eager"])
def test_what_comes_behind_compiles_it(inner):
    def function(q, k, v):
        return torch.func.vmap(masked)(q, k, v)

    inputs = tensors(64, 3)
    compiled = torch.compile(
        function,
        backend="sampleattn",
        options={"inner": inner, "min_seq_len": 32, "block_q": 16, "block_k": 16},
    )
    torch.testing.assert_close(compiled(*inputs), function(*inputs))
