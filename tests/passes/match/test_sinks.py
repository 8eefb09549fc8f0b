"""Attention sinks are found in both spellings; what is only like them is kept, with the reason."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import (
    BATCH,
    FLOAT_MIN,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LENGTH,
    SCALE,
    added,
    allowed,
    full,
    grouped,
    merged,
    repeat_kv,
)
from support.graphs import BLOCK_SPARSE_OPS, SAMPLED_OPS, compile_with_passes

INF = float("inf")
SINKS = torch.tensor([0.5, -1.0, 3.0, 0.0])


def scores(q, k, value=-INF):
    return q @ k.mT * SCALE + added(value)


def column(sinks, rows=LENGTH, batch=BATCH):
    return sinks.reshape(1, -1, 1, 1).expand(batch, -1, rows, -1)


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
    {"tau": 0.0},
    {"tau": 1.0, "budget": 0.0},
    {"tau": 0.0, "means": True, "budget": 1.0},
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


def joined_softmax(q, k, sinks=SINKS):
    return torch.cat([scores(q, k), column(sinks)], -1).softmax(-1)


def not_dropped(q, k, v):
    return joined_softmax(q, k) @ F.pad(v, (0, 0, 0, 1), value=1.0)


def first_column_dropped(q, k, v):
    return joined_softmax(q, k)[..., 1:] @ v


def another_order(q, k, v):
    return joined_softmax(q, k)[..., [*range(1, LENGTH), 0]] @ v


def flipped(q, k, v):
    return joined_softmax(q, k).flip(-1)[..., :-1] @ v


def dropped_without_sinks(q, k, v):
    return scores(q, k).softmax(-1)[..., :-1] @ v[:, :, :-1]


def in_front(q, k, v):
    return torch.cat([column(SINKS), scores(q, k)], -1).softmax(-1)[..., 1:] @ v


def two_columns(q, k, v):
    column_ = column(SINKS)
    return torch.cat([scores(q, k), column_, column_], -1).softmax(-1)[..., :-2] @ v


def twice(q, k, v):
    logits = torch.cat([torch.cat([scores(q, k), column(SINKS)], -1), column(SINKS)], -1)
    return logits.softmax(-1)[..., :-1][..., :-1] @ v


def scaled_with_the_scores(q, k, v):
    logits = torch.cat([q @ k.mT + added(), column(SINKS)], -1) * SCALE
    return logits.softmax(-1)[..., :-1] @ v


def masked_with_the_scores(q, k, v):
    logits = torch.cat([q @ k.mT * SCALE, column(SINKS)], -1)
    return (logits + F.pad(added(), (0, 1), value=1.0)).softmax(-1)[..., :-1] @ v


def changed_after_they_joined(q, k, v):
    logits = torch.cat([scores(q, k), column(SINKS)], -1)
    logits[..., -1:] = 1.0
    return logits.softmax(-1)[..., :-1] @ v


def maximum_of_the_scores_alone(q, k, v):
    weights = scores(q, k)
    weights = weights - weights.amax(-1, keepdim=True)
    return torch.cat([weights, column(SINKS)], -1).softmax(-1)[..., :-1] @ v


def one_a_row(q, k, v):
    sinks = q.mean(-1, keepdim=True)
    return torch.cat([scores(q, k), sinks], -1).softmax(-1)[..., :-1] @ v


def one_a_prompt(q, k, v):
    sinks = torch.arange(BATCH * HEADS).view(BATCH, HEADS, 1, 1).expand(-1, -1, LENGTH, -1) * 0.1
    return torch.cat([scores(q, k), sinks], -1).softmax(-1)[..., :-1] @ v


def softmax_over_rows(q, k, v):
    return torch.cat([scores(q, k), column(SINKS)], -1).softmax(-2)[..., :-1] @ v


def softmax_over_heads(q, k, v):
    return torch.cat([scores(q, k, FLOAT_MIN), column(SINKS)], -1).softmax(1)[..., :-1] @ v


def written_before_the_end(q, k, v):
    sinks = SINKS.clone()
    weights = joined_softmax(q, k, sinks)[..., :-1]
    sinks.mul_(2.0)
    return weights @ v + sinks[:, None, None]


def dropout_in_training(q, k, v):
    return F.dropout(joined_softmax(q, k)[..., :-1], 1e-12, True) @ v


def bidirectional(q, k, v):
    logits = torch.cat([q @ k.mT * SCALE, column(SINKS)], -1)
    return logits.softmax(-1)[..., :-1] @ v


def share_of_other_scores(q, k, v):
    share = torch.sigmoid((q @ k.mT * SCALE).logsumexp(-1) - SINKS[:, None])
    return scores(q, k).softmax(-1) @ v * share.unsqueeze(-1)


def share_of_scores_written_between(q, k, v):
    weights = scores(q, k)
    lse = weights.logsumexp(-1)
    weights.mul_(0.5)
    return weights.softmax(-1) @ v * torch.sigmoid(lse - SINKS[:, None]).unsqueeze(-1)


def share_of_scores_written_afterwards(q, k, v):
    weights = scores(q, k)
    softmax = weights.softmax(-1)
    weights.mul_(0.5)
    return softmax @ v * torch.sigmoid(weights.logsumexp(-1) - SINKS[:, None]).unsqueeze(-1)


def share_over_rows(q, k, v):
    weights = scores(q, k, FLOAT_MIN)
    return weights.softmax(-1) @ v * torch.sigmoid(weights.logsumexp(-2) - SINKS[:, None]).unsqueeze(-1)


def share_of_shifted_scores(q, k, v):
    weights = scores(q, k)
    weights = weights - weights.amax(-1, keepdim=True)
    return weights.softmax(-1) @ v * torch.sigmoid(weights.logsumexp(-1) - SINKS[:, None]).unsqueeze(-1)


def share_the_other_way_round(q, k, v):
    weights = scores(q, k)
    return weights.softmax(-1) @ v * torch.sigmoid(SINKS[:, None] - weights.logsumexp(-1)).unsqueeze(-1)


def share_with_alpha(q, k, v):
    weights = scores(q, k)
    share = torch.sigmoid(torch.sub(weights.logsumexp(-1), SINKS[:, None], alpha=2))
    return weights.softmax(-1) @ v * share.unsqueeze(-1)


def share_of_rows(q, k, v):
    weights = scores(q, k)
    share = torch.sigmoid(weights.logsumexp(-1) - torch.arange(LENGTH) * 0.1)
    return weights.softmax(-1) @ v * share.unsqueeze(-1)


def share_added(q, k, v):
    weights = scores(q, k)
    share = torch.sigmoid(weights.logsumexp(-1) - SINKS[:, None])
    return weights.softmax(-1) @ v + share.unsqueeze(-1)


def share_returned(q, k, v):
    weights = scores(q, k)
    share = torch.sigmoid(weights.logsumexp(-1) - SINKS[:, None])
    return weights.softmax(-1) @ v * share.unsqueeze(-1), share


KEPT = [
    pytest.param(not_dropped, "their column is not dropped", id="not dropped"),
    pytest.param(first_column_dropped, "getitem between softmax", id="first column dropped"),
    pytest.param(another_order, "getitem between softmax", id="another order"),
    pytest.param(flipped, "flip between softmax", id="flipped"),
    pytest.param(dropped_without_sinks, "getitem between softmax", id="dropped without sinks"),
    pytest.param(in_front, "cat between the scores and softmax", id="in front"),
    pytest.param(two_columns, "cat between the scores and softmax", id="two columns"),
    pytest.param(twice, "expected one column", id="twice"),
    pytest.param(scaled_with_the_scores, "scaled, masked or reshaped", id="scaled too"),
    pytest.param(masked_with_the_scores, "scaled, masked or reshaped", id="masked too"),
    pytest.param(changed_after_they_joined, "setitem between the scores and softmax", id="changed"),
    pytest.param(maximum_of_the_scores_alone, "the maximum is subtracted", id="maximum of the scores"),
    pytest.param(one_a_row, "not one a head", id="of tokens"),
    pytest.param(one_a_prompt, "not one a head", id="of batch rows"),
    pytest.param(written_before_the_end, "is changed in place by mul_", id="written"),
    pytest.param(dropout_in_training, "dropout in training", id="dropout"),
    pytest.param(bidirectional, "bidirectional attention, nothing masked", id="bidirectional"),
    pytest.param(share_of_scores_written_between, "", id="lse, then a write"),
    pytest.param(share_of_scores_written_afterwards, "", id="softmax, then a write"),
    pytest.param(share_over_rows, "is read by logsumexp too", id="lse over rows"),
    pytest.param(share_of_shifted_scores, "whose maximum was subtracted", id="lse of shifted scores"),
    pytest.param(share_the_other_way_round, "is read by", id="sink - lse"),
    pytest.param(share_with_alpha, "is read by logsumexp too", id="alpha"),
    pytest.param(share_of_rows, "is read by logsumexp too", id="sinks of rows"),
    pytest.param(share_added, "is read by logsumexp too", id="added"),
    pytest.param(share_returned, "is read by", id="share returned"),
]


@pytest.mark.parametrize("function, reason", KEPT)
def test_kept_as_it_was(function, reason):
    backend = compile_with_passes(function, *full(), tolerance=0.0)
    assert backend.outcomes == [("kept", "")]
    assert reason in backend.records[0].reason
    assert str(backend.after[0].graph) == str(backend.before[0].graph)


@pytest.mark.parametrize("function", [softmax_over_rows, softmax_over_heads])
def test_what_is_no_attention_is_no_site(function):
    assert compile_with_passes(function, *full(), tolerance=0.0).records == []


def test_a_share_of_other_scores_stays_beside_the_attention():
    backend = compile_with_passes(share_of_other_scores, *full())
    assert backend.outcomes == [("sampled", "sampled")]
    assert backend.records[0].spelling == "eager"


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
