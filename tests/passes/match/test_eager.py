"""Attention that is written out is found in every spelling; near misses are kept, with the reason."""

import math

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
    by_position,
    full,
    grouped,
    merged,
    repeat_kv,
    single,
)
from support.graphs import SAMPLED_OPS, assert_kept_as_it_was, compile_with_passes

INF = float("inf")


def transformers_form(q, k, v):
    weights = torch.matmul(q, repeat_kv(k).transpose(2, 3)) * SCALE + added(FLOAT_MIN)
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = F.dropout(weights, p=0.1, training=False)
    return torch.matmul(weights, repeat_kv(v)).transpose(1, 2).contiguous()


def operators(q, k, v):
    return ((q @ k.transpose(-1, -2) / math.sqrt(HEAD_DIM)) + added()).softmax(-1) @ v


def key_by_mt(q, k, v):
    return torch.softmax(q @ k.mT * SCALE + added(), dim=-1) @ v


def key_by_permute(q, k, v):
    return F.softmax(q.matmul(k.permute(0, 1, 3, 2)).mul(SCALE).add(added()), -1).matmul(v)


def key_stored_transposed(q, k, v):
    return (q @ k.mT.contiguous() * SCALE + added()).softmax(-1) @ v


def scaled_query(q, k, v):
    return ((q * SCALE) @ k.mT + added()).softmax(-1) @ v


def scaled_query_and_key(q, k, v):
    return ((q / 2) @ (k / 2).mT + added()).softmax(-1) @ v


def scale_as_tensor(q, k, v):
    return (q @ k.mT / torch.full([], math.sqrt(HEAD_DIM)) + added()).softmax(-1) @ v


def mask_on_the_left(q, k, v):
    return (added() + SCALE * (q @ k.mT)).softmax(-1) @ v


def mask_before_scale(q, k, v):
    return ((q @ k.mT + added()) * SCALE).softmax(-1) @ v


def masked_fill(q, k, v):
    return (q @ k.mT * SCALE).masked_fill(~allowed(), -INF).softmax(-1) @ v


def masked_fill_with_a_large_number(q, k, v):
    return (q @ k.mT * SCALE).masked_fill(~allowed(), -1e9).softmax(-1) @ v


def where_scores_first(q, k, v):
    low = torch.tensor(FLOAT_MIN)
    return torch.where(allowed(), q @ k.mT * SCALE, low).softmax(-1) @ v


def where_scores_last(q, k, v):
    return torch.where(~allowed(), -INF, q @ k.mT * SCALE).softmax(-1) @ v


def two_masks(q, k, v):
    scores = torch.where(allowed(), q @ k.mT * SCALE, FLOAT_MIN)
    return (scores + added(FLOAT_MIN)).softmax(-1) @ v


def in_place(q, k, v):
    scores = q @ k.mT
    scores *= SCALE
    scores += added()
    return scores.softmax(-1) @ v


def in_place_and_result_not_read(q, k, v):
    scores = q @ k.mT
    scores.mul_(SCALE).add_(added())
    scores.masked_fill_(~allowed(), -INF)
    return scores.softmax(-1) @ v


def upcast(q, k, v):
    return (q @ k.mT * SCALE + added()).float().softmax(-1).type_as(q) @ v


def upcast_before_the_product(q, k, v):
    scores = torch.matmul(q.to(torch.float32), k.to(torch.float32).transpose(-1, -2)) / 4.0
    return (scores + added(FLOAT_MIN)).softmax(-1).to(v.dtype) @ v


def maximum_subtracted(q, k, v):
    scores = q @ k.mT * SCALE + added()
    return (scores - scores.amax(-1, keepdim=True)).softmax(-1) @ v


def einsum(q, k, v):
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * SCALE + added()
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


def einsum_by_position(q, k, v):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE + added()
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def einsum_with_ellipsis(q, k, v):
    scores = torch.einsum("...qd,...kd->...qk", q, k) * SCALE + added()
    return torch.einsum("...qk,...kd->...qd", scores.softmax(-1), v)


def einsum_key_first(q, k, v):
    scores = torch.einsum("bhkd,bhqd->bhqk", k, q) * SCALE + added()
    return torch.einsum("bhkd,bhqk->bqhd", v, scores.softmax(-1)).flatten(2)


def bmm(q, k, v):
    q, k, v = merged(q, k, v)
    scores = torch.bmm(q, k.transpose(1, 2)).view(BATCH, HEADS, LENGTH, LENGTH) * SCALE + added()
    return torch.bmm(scores.softmax(-1).view(BATCH * HEADS, LENGTH, LENGTH), v).view(
        BATCH, HEADS, LENGTH, HEAD_DIM
    )


def no_less_than_the_lowest(q, k, v):
    scores = q @ k.mT * SCALE + added()
    return torch.max(scores, torch.full((), FLOAT_MIN)).softmax(-1) @ v


def clamped_to_the_lowest(q, k, v):
    return (q @ k.mT * SCALE + added()).clamp(min=FLOAT_MIN).softmax(-1) @ v


def rows_without_keys_clamped(q, k, v):
    low = torch.full((LENGTH, LENGTH), FLOAT_MIN).triu(1) + torch.where(
        torch.arange(LENGTH) < 3, FLOAT_MIN, 0.0
    )
    return torch.maximum(q @ k.mT * SCALE + low, torch.tensor(FLOAT_MIN)).softmax(-1) @ v


def bmm_throughout(q, k, v):
    q, k, v = merged(q, k, v)
    return torch.bmm((torch.bmm(q, k.transpose(1, 2)) * SCALE + added()).softmax(-1), v)


def baddbmm_into_nothing(q, k, v):
    q, k, v = merged(q, k, v)
    nothing = torch.empty(BATCH * HEADS, LENGTH, LENGTH)
    scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=SCALE)
    weights = (scores.view(BATCH, HEADS, LENGTH, LENGTH) + added()).softmax(-1)
    return weights.view(BATCH * HEADS, LENGTH, LENGTH) @ v


def baddbmm_into_the_mask(q, k, v):
    q, k, v = merged(q, k, v)
    mask = added().expand(BATCH * HEADS, LENGTH, LENGTH)
    return torch.baddbmm(mask, q, k.transpose(1, 2), alpha=SCALE).softmax(-1) @ v


def repeat_interleave(q, k, v):
    k, v = k.repeat_interleave(2, dim=1), torch.repeat_interleave(v, 2, 1)
    return (q @ k.mT * SCALE + added()).softmax(-1) @ v


def repeated_before_the_transpose(q, k, v):
    k = k.repeat_interleave(2, dim=2)
    v = v.unsqueeze(3).repeat(1, 1, 1, 2, 1).flatten(2, 3)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return (q @ k.mT * SCALE + added()).softmax(-1) @ v


def tiled_heads(q, k, v):
    k, v = k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)
    return (q @ k.mT * SCALE + added()).softmax(-1) @ v


def broadcast_head(q, k, v):
    return (q @ k.mT * SCALE + added()).softmax(-1) @ v


def three_dimensions(q, k, v):
    return broadcast_head(q[:, 0], k[:, 0], v[:, 0])


def two_dimensions(q, k, v):
    return broadcast_head(q[0, 0], k[0, 0], v[0, 0])


def viewed_afterwards(q, k, v):
    return broadcast_head(q, k, v).view(BATCH * HEADS, LENGTH, HEAD_DIM)


FOUND = [
    pytest.param(transformers_form, grouped, KV_HEADS, id="transformers"),
    pytest.param(operators, full, HEADS, id="operators"),
    pytest.param(key_by_mt, full, HEADS, id="mT"),
    pytest.param(key_by_permute, full, HEADS, id="permute and methods"),
    pytest.param(key_stored_transposed, full, HEADS, id="key stored transposed"),
    pytest.param(scaled_query, full, HEADS, id="scaled query"),
    pytest.param(scaled_query_and_key, full, HEADS, id="scaled query and key"),
    pytest.param(scale_as_tensor, full, HEADS, id="scale as tensor"),
    pytest.param(mask_on_the_left, full, HEADS, id="mask on the left"),
    pytest.param(mask_before_scale, full, HEADS, id="mask before scale"),
    pytest.param(masked_fill, full, HEADS, id="masked_fill"),
    pytest.param(masked_fill_with_a_large_number, full, HEADS, id="masked_fill -1e9"),
    pytest.param(where_scores_first, full, HEADS, id="where, scores first"),
    pytest.param(where_scores_last, full, HEADS, id="where, scores last"),
    pytest.param(two_masks, full, HEADS, id="two masks"),
    pytest.param(in_place, full, HEADS, id="in place"),
    pytest.param(in_place_and_result_not_read, full, HEADS, id="in place, result not read"),
    pytest.param(upcast, full, HEADS, id="upcast"),
    pytest.param(upcast_before_the_product, full, HEADS, id="upcast before the product"),
    pytest.param(maximum_subtracted, full, HEADS, id="maximum subtracted"),
    pytest.param(einsum, full, HEADS, id="einsum"),
    pytest.param(einsum_by_position, by_position, HEADS, id="einsum [B, S, H, D]"),
    pytest.param(einsum_with_ellipsis, full, HEADS, id="einsum with ellipsis"),
    pytest.param(einsum_key_first, full, HEADS, id="einsum, key first"),
    pytest.param(bmm, full, HEADS, id="bmm"),
    pytest.param(no_less_than_the_lowest, full, HEADS, id="max with finfo.min"),
    pytest.param(clamped_to_the_lowest, full, HEADS, id="clamp to finfo.min"),
    pytest.param(rows_without_keys_clamped, full, HEADS, id="rows without keys, maximum with finfo.min"),
    pytest.param(bmm_throughout, full, HEADS, id="bmm without [B, H, S, S]"),
    pytest.param(baddbmm_into_nothing, full, HEADS, id="baddbmm, beta 0"),
    pytest.param(baddbmm_into_the_mask, full, HEADS, id="baddbmm, mask as input"),
    pytest.param(repeat_interleave, grouped, KV_HEADS, id="repeat_interleave"),
    pytest.param(
        repeated_before_the_transpose,
        lambda: by_position(KV_HEADS),
        KV_HEADS,
        id="repeated before the transpose",
    ),
    pytest.param(tiled_heads, grouped, HEADS, id="tiled heads stay as they are"),
    pytest.param(broadcast_head, single, 1, id="broadcast head"),
    pytest.param(three_dimensions, full, 1, id="[N, S, D]"),
    pytest.param(two_dimensions, full, 1, id="[S, D]"),
    pytest.param(viewed_afterwards, full, HEADS, id="viewed afterwards"),
]


@pytest.mark.parametrize("function, tensors, kv_heads", FOUND)
def test_long_prompt_is_sampled(function, tensors, kv_heads):
    backend = compile_with_passes(function, *tensors())
    assert backend.ops() == SAMPLED_OPS
    assert backend.outcomes == [("sampled", "sampled")]
    assert backend.records[0].kv_heads == kv_heads
    assert backend.records[0].spelling.startswith("eager")
    assert backend.score_shaped() == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "function", [pytest.param(upcast, id="after"), pytest.param(upcast_before_the_product, id="before")]
)
def test_half_precision_with_upcast_reads_the_half_precision_tensors(function, dtype):
    backend = compile_with_passes(function, *full(dtype), tolerance=1e-2)
    assert backend.outcomes == [("sampled", "sampled")]
    assert backend.records[0].dtype == str(dtype).removeprefix("torch.")


def softcap(q, k, v):
    return (torch.tanh(q @ k.mT * SCALE / 50) * 50 + added()).softmax(-1) @ v


def weights_returned(q, k, v):
    weights = (q @ k.mT * SCALE + added()).softmax(-1)
    return weights @ v, weights


def scores_returned(q, k, v):
    scores = q @ k.mT * SCALE
    return (scores + added()).softmax(-1) @ v, scores.sum()


def mild_fill(q, k, v):
    return (q @ k.mT * SCALE).masked_fill(~allowed(), -100.0).softmax(-1) @ v


def mild_floor(q, k, v):
    return (q @ k.mT * SCALE + added()).clamp(min=-100.0).softmax(-1) @ v


def ceiling(q, k, v):
    return (q @ k.mT * SCALE + added()).clamp(FLOAT_MIN, 2.0).softmax(-1) @ v


def floor_of_nan(q, k, v):
    return torch.max(q @ k.mT * SCALE + added(), torch.full((), INF - INF)).softmax(-1).nan_to_num() @ v


def floor_before_the_mask(q, k, v):
    return ((q @ k.mT * SCALE).clamp(min=FLOAT_MIN) + added()).softmax(-1) @ v


def relative_positions(q, k, v):
    return (q @ k.mT * SCALE + q @ torch.ones(HEAD_DIM, LENGTH) + added()).softmax(-1) @ v


def bias_per_head(q, k, v):
    slopes = torch.arange(HEADS).view(HEADS, 1, 1) * torch.arange(LENGTH)
    return (q @ k.mT * SCALE + slopes + added()).softmax(-1) @ v


def enlarged_mask(q, k, v):
    return ((q @ k.mT + added(FLOAT_MIN)) * 2).softmax(-1) @ v


def key_changed_before_the_end(q, k, v):
    k = k.clone()
    weights = (q @ k.mT * SCALE + added()).softmax(-1)
    k.mul_(2.0)
    return weights @ v + k.sum()


def weights_repaired(q, k, v):
    return (q @ k.mT * SCALE + added()).softmax(-1).nan_to_num() @ v


def no_mask(q, k, v):
    return (q @ k.mT * SCALE).softmax(-1) @ v


def dropout_in_training(q, k, v):
    return F.dropout((q @ k.mT * SCALE + added()).softmax(-1), 1e-12, True) @ v


def bools_added(q, k, v):
    """They favour keys, and mask none."""
    return (q @ k.mT * SCALE + allowed()).softmax(-1) @ v


def bools_added_in_place(q, k, v):
    scores = q @ k.mT * SCALE
    scores += allowed()
    return scores.softmax(-1) @ v


def two_masks_of_bools(q, k, v):
    return (q @ k.mT * SCALE + allowed() + allowed().logical_not()).softmax(-1) @ v


def whole_scores(q, k, v):
    return ((q @ k.mT).to(torch.int32).float() + added()).softmax(-1) @ v


def eight_bit_scores(q, k, v):
    return ((q @ k.mT * SCALE).to(torch.float8_e5m2).float() + added()).softmax(-1) @ v


def whole_weights(q, k, v):
    return ((q @ k.mT * 9) + added()).softmax(-1).to(torch.int32).float() @ v


def eight_bit_weights(q, k, v):
    return ((q @ k.mT * SCALE) + added()).softmax(-1).to(torch.float8_e5m2).float() @ v


KEPT = [
    pytest.param(softcap, "tanh softcap", id="softcap"),
    pytest.param(weights_returned, "attention weights are an output", id="weights returned"),
    pytest.param(scores_returned, "is read by sum", id="scores returned"),
    pytest.param(mild_fill, "not low enough to exclude a key", id="mild fill"),
    pytest.param(mild_floor, "clamp between the scores", id="clamp to -100"),
    pytest.param(ceiling, "clamp between the scores", id="clamp from above"),
    pytest.param(floor_of_nan, "max between the scores", id="max with nan"),
    pytest.param(floor_before_the_mask, "clamp before the scores are", id="clamp before the mask"),
    pytest.param(relative_positions, "a second product is added to the scores", id="relative positions"),
    pytest.param(bias_per_head, "mask not proven", id="bias per head"),
    pytest.param(enlarged_mask, "the mask is scaled together with the scores", id="enlarged mask"),
    pytest.param(key_changed_before_the_end, "is changed in place by mul_", id="key changed"),
    pytest.param(weights_repaired, "nan_to_num between softmax and the product", id="nan_to_num"),
    pytest.param(no_mask, "bidirectional attention, nothing masked", id="bidirectional"),
    pytest.param(dropout_in_training, "dropout in training", id="dropout"),
    pytest.param(bools_added, "a bool mask is added to the scores", id="bools added"),
    pytest.param(bools_added_in_place, "a bool mask is added to the scores", id="bools added in place"),
    pytest.param(two_masks_of_bools, "a bool mask is added to the scores", id="two masks of bools"),
    pytest.param(whole_scores, "scores of torch.int32", id="whole scores"),
    pytest.param(eight_bit_scores, "scores of torch.float8_e5m2", id="eight-bit scores"),
    pytest.param(whole_weights, "to between softmax and the product", id="whole weights"),
    pytest.param(eight_bit_weights, "to between softmax and the product", id="eight-bit weights"),
]


@pytest.mark.parametrize("function, reason", KEPT)
def test_kept_as_it_was(function, reason):
    assert_kept_as_it_was(function, full(), reason)


def test_what_is_not_understood_has_its_lengths_in_the_report():
    q, k, v = full()

    def few_rows(q, k, v):
        return torch.tanh(q @ k.mT).softmax(-1) @ v

    (record,) = compile_with_passes(few_rows, q[:, :, :40], k, v).records
    assert (record.q_len, record.kv_len, record.head_dim) == (40, LENGTH, "?")


def softmax_over_rows(q, k, v):
    return (q @ k.mT * SCALE + added().T).softmax(-2) @ v


def softmax_of_a_classifier(q, k, v):
    return F.linear(q, torch.ones(LENGTH, HEAD_DIM)).softmax(-1)


def product_without_softmax(q, k, v):
    return torch.relu(q @ k.mT) @ v


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(softmax_over_rows, id="softmax over rows"),
        pytest.param(softmax_of_a_classifier, id="classifier"),
        pytest.param(product_without_softmax, id="no softmax"),
    ],
)
def test_what_is_no_attention_is_no_site(function):
    assert compile_with_passes(function, *full(), tolerance=0.0).records == []
