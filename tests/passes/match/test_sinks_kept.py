"""What is only like attention sinks, or can not be computed with them, is kept, with the reason."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import BATCH, FLOAT_MIN, HEADS, LENGTH, SCALE, SINKS, added, column, full, scores
from support.graphs import assert_kept_as_it_was, compile_with_passes


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
    assert_kept_as_it_was(function, full(), reason)


@pytest.mark.parametrize("function", [softmax_over_rows, softmax_over_heads])
def test_what_is_no_attention_is_no_site(function):
    assert compile_with_passes(function, *full(), tolerance=0.0).records == []


def test_a_share_of_other_scores_stays_beside_the_attention():
    backend = compile_with_passes(share_of_other_scores, *full())
    assert backend.outcomes == [("sampled", "sampled")]
    assert backend.records[0].spelling == "eager"
