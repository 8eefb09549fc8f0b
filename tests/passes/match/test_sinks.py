"""Attention sinks are found in both spellings, whatever they are computed with."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import (
    BATCH,
    FLOAT_MIN,
    HEAD_DIM,
    HEADS,
    INF,
    KV_HEADS,
    LENGTH,
    SCALE,
    SINKS,
    added,
    allowed,
    column,
    full,
    grouped,
    merged,
    repeat_kv,
    scores,
)
from support.graphs import BLOCK_SPARSE_OPS, SAMPLED_OPS, compile_with_passes


def gpt_oss(q, k, v, sinks=SINKS):
    """As transformers writes it."""
    weights = torch.matmul(q, repeat_kv(k).transpose(2, 3)) * SCALE + added(FLOAT_MIN)
    logits = torch.cat([weights, column(sinks)], dim=-1)
    logits = logits - logits.max(dim=-1, keepdim=True).values
    weights = F.softmax(logits, dim=-1, dtype=logits.dtype)[..., :-1]
    weights = F.dropout(weights, p=0.1, training=False).to(v.dtype)
    return torch.matmul(weights, repeat_kv(v)).transpose(1, 2).contiguous()


def flint(q, k, v, sinks=SINKS):
    weights = torch.matmul(q, repeat_kv(k).transpose(2, 3)) * SCALE + added(FLOAT_MIN)
    sinks = sinks.reshape(1, -1, 1, 1).expand(*weights.shape[:-1], 1)
    weights = F.softmax(torch.cat([weights, sinks], dim=-1), dim=-1)[..., :-1].to(v.dtype)
    return torch.matmul(weights, repeat_kv(v))


def granite(q, k, v, sinks=SINKS):
    """As transformers writes it."""
    weights = torch.matmul(q, repeat_kv(k).transpose(2, 3)) * SCALE + added(FLOAT_MIN)
    lse = torch.logsumexp(weights, dim=-1)
    share = (lse - sinks.view(1, -1, 1)).to(torch.float32).sigmoid()
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    out = torch.matmul(weights, repeat_kv(v))
    out = out * share.unsqueeze(-1).to(out.dtype)
    return out.transpose(1, 2).contiguous()


def before_an_upcast(q, k, v):
    logits = torch.cat((scores(q, k), column(SINKS).to(q.dtype)), 3).float()
    return logits.softmax(-1)[:, :, :, :LENGTH].type_as(q) @ v


def narrowed(q, k, v):
    return torch.cat([scores(q, k), column(SINKS)], -1).softmax(-1).narrow(-1, 0, LENGTH) @ v


def repeated(q, k, v):
    sinks = SINKS[:, None, None].repeat(BATCH, 1, LENGTH, 1)
    return torch.cat([scores(q, k), sinks], -1).softmax(-1)[..., 0:-1] @ v


def one_for_all_heads(q, k, v):
    sinks = torch.full((1, 1, 1, 1), 0.7).expand(BATCH, HEADS, LENGTH, 1)
    return torch.cat([scores(q, k), sinks], -1).softmax(-1)[..., :-1] @ v


def subtracted_in_place(q, k, v):
    logits = torch.cat([scores(q, k), column(SINKS)], -1)
    logits -= logits.amax(-1, keepdim=True)
    return logits.softmax(-1)[..., :-1] @ v


def filled(q, k, v):
    weights = (q @ k.mT * SCALE).masked_fill(~allowed(), -INF)
    return torch.cat([weights, column(SINKS)], -1).softmax(-1)[..., :-1] @ v


def merged_heads(q, k, v):
    q, k, v = merged(q, k, v)
    weights = torch.bmm(q, k.transpose(1, 2)).view(BATCH, HEADS, LENGTH, LENGTH) * SCALE + added()
    weights = torch.cat([weights, column(SINKS)], -1).softmax(-1)[..., :-1]
    out = torch.bmm(weights.reshape(BATCH * HEADS, LENGTH, LENGTH), v)
    return out.view(BATCH, HEADS, LENGTH, HEAD_DIM)


def share_with_a_last_dimension(q, k, v):
    weights = scores(q, k)
    share = torch.sigmoid(weights.logsumexp(-1, keepdim=True) - SINKS[:, None, None])
    return share * (weights.softmax(-1) @ v)


FOUND = [
    pytest.param(gpt_oss, grouped, KV_HEADS, id="gpt-oss"),
    pytest.param(flint, grouped, KV_HEADS, id="flint"),
    pytest.param(granite, grouped, KV_HEADS, id="granite"),
    pytest.param(before_an_upcast, full, HEADS, id="before an upcast"),
    pytest.param(narrowed, full, HEADS, id="narrow"),
    pytest.param(repeated, full, HEADS, id="repeat"),
    pytest.param(one_for_all_heads, full, HEADS, id="one for all heads"),
    pytest.param(subtracted_in_place, full, HEADS, id="maximum subtracted in place"),
    pytest.param(filled, full, HEADS, id="masked_fill"),
    pytest.param(merged_heads, full, HEADS, id="bmm"),
    pytest.param(share_with_a_last_dimension, full, HEADS, id="lse with keepdim"),
]


@pytest.mark.parametrize("function, tensors, kv_heads", FOUND)
def test_long_prompt_is_sampled(function, tensors, kv_heads):
    backend = compile_with_passes(function, *tensors())
    assert backend.ops() == SAMPLED_OPS
    assert backend.outcomes == [("sampled", "sampled")]
    (record,) = backend.records
    assert record.kv_heads == kv_heads and record.mask == "causal"
    assert record.spelling.startswith("eager") and record.spelling.endswith(" with sinks")
    assert backend.score_shaped() == []


BOTH = pytest.mark.parametrize(
    "function", [pytest.param(gpt_oss, id="concatenated"), pytest.param(granite, id="lse")]
)
METHODS = [
    {"peak": 1.0, "tau": 0.0},
    {"peak": 0.0},
    {"peak": 1.0, "tau": 1.0, "budget": 0.0},
    {"peak": 1.0, "tau": 0.0, "means": True, "budget": 1.0},
    {"method": "chunked", "alpha_c": 1.0, "alpha_s": 1.0},
    {"method": "stride", "alpha_c": 1.0, "r_w": 1.0},
]


@BOTH
@pytest.mark.parametrize("options", METHODS, ids=lambda options: ", ".join(map(str, options.values())))
def test_every_method_with_every_block_kept_is_the_attention(function, options):
    backend = compile_with_passes(function, *grouped(), **options)
    assert backend.outcomes == [("sampled", "sampled")]


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(function, dtype):
    backend = compile_with_passes(function, *grouped(dtype), tolerance=1e-2)
    assert backend.outcomes == [("sampled", "sampled")]
    assert backend.records[0].dtype == str(dtype).removeprefix("torch.")


@BOTH
def test_short_prompt_is_exact_in_blocks_for_sdpa_has_no_sinks(function):
    backend = compile_with_passes(function, *grouped(), min_seq_len=4096)
    assert backend.ops() == BLOCK_SPARSE_OPS
    assert backend.outcomes == [("exact", "block_sparse")]
    assert backend.score_shaped() == []


def of_any_length(q, k, v, sinks):
    batch, _, length, head_dim = q.shape
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    column = sinks.view(1, -1, 1, 1).expand(batch, -1, length, -1)
    logits = torch.cat([q @ k.mT / 4.0 + mask, column], -1)
    return logits.softmax(-1)[..., :-1] @ v


@pytest.mark.parametrize("min_seq_len", [1, 4096])
def test_dynamic_shapes(min_seq_len):
    backend = compile_with_passes(of_any_length, *full(), SINKS, dynamic=True, min_seq_len=min_seq_len)
    assert backend.records[0].rewritten and isinstance(backend.records[0].q_len, str)
    assert backend.score_shaped() == []


@BOTH
def test_sinks_of_minus_infinity_are_none_and_large_ones_leave_nothing(function):
    def at(value):
        return lambda q, k, v: function(q, k, v, torch.full((HEADS,), value))

    inputs = grouped()
    for value, other in ((-INF, 0.0), (40.0, 1.0), (-40.0, 0.0)):
        assert compile_with_passes(at(value), *inputs).outcomes == [("sampled", "sampled")]
        out = at(value)(*inputs)
        without = at(-INF)(*inputs) * (1 - other)
        torch.testing.assert_close(out, without, atol=1e-6, rtol=1e-5)


def padded_concatenated(q, k, v, pad, value, sinks):
    mask = torch.where(allowed() & pad[:, None, None], 0.0, value)
    logits = torch.cat([q @ k.mT * SCALE + mask, column(sinks)], -1)
    return (logits - logits.amax(-1, keepdim=True)).softmax(-1)[..., :-1] @ v


def padded_share(q, k, v, pad, value, sinks):
    weights = q @ k.mT * SCALE + torch.where(allowed() & pad[:, None, None], 0.0, value)
    share = torch.sigmoid(weights.logsumexp(-1) - sinks[:, None])
    return weights.softmax(-1) @ v * share[..., None]


ONE_OUT = torch.tensor([0.5, -INF, 3.0, -30.0])


@pytest.mark.parametrize("min_seq_len", [1, 4096], ids=["sampled", "exact"])
@pytest.mark.parametrize("function", [padded_concatenated, padded_share])
def test_rows_without_keys_are_what_they_were(function, min_seq_len):
    pad = torch.arange(LENGTH) >= torch.tensor([[7], [0]])

    def attention(q, k, v, pad):
        return function(q, k, v, pad, FLOAT_MIN, ONE_OUT)

    backend = compile_with_passes(attention, *full(), pad, min_seq_len=min_seq_len)
    assert backend.records[0].outcome in ("sampled", "exact") and backend.records[0].rewritten
    assert backend.records[0].mask == "causal & key_valid"


def test_under_minus_infinity_a_row_without_keys_is_zero_beside_its_sink():
    pad = torch.arange(LENGTH) >= torch.tensor([[7], [0]])

    def attention(q, k, v, pad):
        return padded_concatenated(q, k, v, pad, -INF, SINKS)

    backend = compile_with_passes(attention, *full(), pad)
    assert backend.outcomes == [("sampled", "sampled")]


def test_window_and_autocast():
    def attention(q, k, v):
        near = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().triu(-9)
        with torch.autocast("cpu", torch.bfloat16):
            weights = torch.matmul(q, k.mT) * SCALE + torch.where(near, 0.0, FLOAT_MIN)
            logits = torch.cat([weights, column(SINKS)], -1)
            return torch.matmul(logits.softmax(-1)[..., :-1], v)

    backend = compile_with_passes(attention, *full(), tolerance=2e-2)
    assert backend.outcomes == [("exact", "block_sparse")]
    assert backend.records[0].mask == "causal & window(10)"


@BOTH
def test_training_is_kept(function):
    sinks = torch.nn.Parameter(SINKS.clone())
    backend = compile_with_passes(lambda q, k, v: function(q, k, v, sinks), *grouped(), training=True)
    assert backend.outcomes == [("kept", "")]
    assert "training" in backend.records[0].reason


@pytest.mark.parametrize("q_len, outcome", [(1, "kept"), (5, "exact")])
def test_rows_behind_a_cache(q_len, outcome):
    def attention(q, k, v):
        logits = torch.cat([q @ k.mT * SCALE + added()[-q_len:], column(SINKS, q_len)], -1)
        return logits.softmax(-1)[..., :-1] @ v

    q, k, v = full()
    backend = compile_with_passes(attention, q[:, :, -q_len:].contiguous(), k, v)
    assert backend.records[0].outcome == outcome
