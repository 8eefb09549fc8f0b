"""What is called like an operation of torch, and is none: nothing is rewritten that rests on it."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import HEADS, KV_HEADS, LENGTH, SCALE, allowed, full, grouped, merged
from support.graphs import compile_with_passes
from support.namesakes import FUNCTIONS, namesakes

N = HEADS // KV_HEADS


def eager(library, q, k, v, name):
    """Attention written out, with one operation of the library and the others of torch."""
    pick = {each: getattr(torch, each) for each in FUNCTIONS if hasattr(torch, each)}
    pick[name] = getattr(library, name)
    scores = pick["matmul"](q, pick["transpose"](k, -1, -2)) * SCALE
    ones = torch.ones(LENGTH, LENGTH)
    mask = pick["where"](pick["tril"](ones) > 0, torch.zeros(()), torch.full((), float("-inf")))
    return torch.matmul(pick["softmax"](scores + mask, -1), v)


def of_merged_heads(library, q, k, v, name):
    scores = library.bmm(q, torch.transpose(k, 1, 2)) * SCALE
    return torch.bmm(torch.softmax(scores.masked_fill(~allowed(), float("-inf")), -1), v)


def sdpa(library, q, k, v, name):
    return library.scaled_dot_product_attention(q, k, v, is_causal=True)


def masked_sdpa(library, q, k, v, name):
    ones = torch.ones(LENGTH, LENGTH)
    zero, low = torch.zeros(()), torch.full((), float("-inf"))
    if name == "tril":
        mask = library.tril(ones) > 0
    elif name == "where":
        mask = library.where(torch.tril(ones) > 0, zero, low)
    else:
        mask = library.transpose(torch.triu(ones), -1, -2) > 0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def repeated(library, q, k, v, name):
    k, v = (library.repeat_interleave(x, N, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


CASES = [
    *((eager, full, name) for name in ("softmax", "matmul", "transpose", "where", "tril")),
    (of_merged_heads, lambda: merged(*full()), "bmm"),
    (sdpa, full, "scaled_dot_product_attention"),
    *((masked_sdpa, full, name) for name in ("tril", "where", "transpose")),
    (repeated, grouped, "repeat_interleave"),
]
# Attention to a key that the namesake made is attention: rewritten, but with that key.
MADE_BY_THE_NAMESAKE = [(eager, "transpose"), (repeated, "repeat_interleave")]


def outcome(function, tensors, name, how):
    library = namesakes(how)
    return compile_with_passes(lambda q, k, v: function(library, q, k, v, name), *tensors())


@pytest.mark.parametrize("how", ["custom op", "allow_in_graph"])
@pytest.mark.parametrize("function, tensors, name", CASES, ids=[f"{c[0].__name__}-{c[2]}" for c in CASES])
def test_a_namesake_is_not_torchs(function, tensors, name, how):
    rewritten = [record for record in outcome(function, tensors, name, how).records if record.rewritten]
    if (function, name) in MADE_BY_THE_NAMESAKE:
        assert all(record.kv_heads == HEADS for record in rewritten)
    else:
        assert not rewritten


@pytest.mark.parametrize("function, tensors, name", CASES, ids=[f"{c[0].__name__}-{c[2]}" for c in CASES])
def test_torchs_own_is(function, tensors, name):
    (record,) = outcome(function, tensors, name, "torch").records
    assert record.rewritten
