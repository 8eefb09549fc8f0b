"""Float masks from outside of the graph: read when the graph runs, or kept."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import (
    BATCH,
    FLOAT_MIN,
    HEADS,
    INF,
    KV_HEADS,
    LENGTH,
    SCALE,
    SINKS,
    column,
    full,
    grouped,
    repeat_kv,
)
from support.graphs import compile_with_passes

LATE = ("sampled", "late")


def causal(pad=5, low=FLOAT_MIN, window=LENGTH):
    """float [B, 1, S, S]; the first prompt starts with padding, whose rows see no key."""
    mask = torch.zeros(BATCH, 1, LENGTH, LENGTH)
    mask.masked_fill_(~torch.ones(LENGTH, LENGTH).bool().tril().triu(1 - window), low)
    mask[0, ..., :pad] = low
    return mask


def layer(q, k, v, mask):
    return (q @ k.mT * SCALE + mask).softmax(-1) @ v


def of_transformers(q, k, v, mask):
    weights = torch.matmul(q, repeat_kv(k).transpose(2, 3)) * SCALE + mask
    weights = torch.nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, repeat_kv(v)).transpose(1, 2).contiguous()


def batched_products(q, k, v, mask):
    q, k, v = (x.reshape(-1, LENGTH, x.shape[-1]) for x in (q, k, v))
    scores = torch.bmm(q, k.mT).view(BATCH, HEADS, LENGTH, LENGTH) * SCALE + mask
    return torch.bmm(scores.softmax(-1).view(-1, LENGTH, LENGTH), v)


def cut_to_the_keys(q, k, v, mask):
    return layer(q, k, v, mask[..., : k.shape[2]])


def sdpa(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask)


def with_sinks(q, k, v, mask):
    logits = torch.cat([q @ k.mT * SCALE + mask, column(SINKS)], -1)
    return (logits - logits.amax(-1, keepdim=True)).softmax(-1)[..., :-1] @ v


def with_a_share_of_sinks(q, k, v, mask):
    weights = q @ k.mT * SCALE + mask
    share = torch.sigmoid(weights.logsumexp(-1) - SINKS[:, None])
    return weights.softmax(-1) @ v * share[..., None]


@pytest.mark.parametrize(
    "function", [layer, batched_products, cut_to_the_keys, sdpa, with_sinks, with_a_share_of_sinks]
)
def test_a_mask_that_comes_with_the_call(function):
    assert compile_with_passes(function, *full(), causal()).outcomes == [LATE]


WRITTEN_BY_HAND = {
    "causal": (causal(0), "sampled"),
    "padded": (causal(5), "sampled"),
    "padded, -inf": (causal(5, -INF), "sampled"),
    "one for all prompts": (causal(0)[:1], "sampled"),
    "window": (causal(0, window=9), "exact"),
    "window, padded": (causal(20, window=9), "exact"),
    "not causal": (causal(0).flip(2), "kept"),
    "low, but not lowest": (causal(0, -1e9), "kept"),
    "a bias beside": (causal(0) + torch.randn(BATCH, 1, LENGTH, LENGTH), "kept"),
}


@pytest.mark.parametrize("name", WRITTEN_BY_HAND)
@pytest.mark.parametrize("function", [sdpa, with_sinks])
@pytest.mark.filterwarnings("ignore:sampleattn")
def test_what_the_last_run_found(function, name):
    mask, outcome = WRITTEN_BY_HAND[name]
    backend = compile_with_passes(function, *full(), mask)
    assert backend.outcomes == [LATE]
    (record,) = map(backend.masks.as_run, backend.records)
    assert record.outcome == outcome


def test_floats_that_bools_of_a_call_chose_are_read():
    def chosen(q, k, v, seen):
        return sdpa(q, k, v, torch.where(seen, 0.0, FLOAT_MIN))

    assert compile_with_passes(chosen, *full(), causal() == 0).outcomes == [LATE]


def test_grouped_heads_and_what_the_report_says_after_the_run():
    backend = compile_with_passes(of_transformers, *grouped(), causal())
    (record,) = backend.records
    assert (record.outcome, record.form, record.kv_heads) == (*LATE, KV_HEADS)
    assert record.reason.endswith("if the mask, read when it runs, is causal without a window")
    assert backend.ops() == {}


def test_layers_that_share_a_mask_read_it_once():
    def layers(q, k, v, mask):
        return layer(layer(q, k, v, mask), k, v, mask)

    backend = compile_with_passes(layers, *full(), causal())
    assert backend.outcomes == [LATE, LATE]
    reads = [node for node in backend.after[0].graph.nodes if "read_mask" in str(node.target)]
    assert len(reads) == 1


def test_other_masks_are_added_as_they_are():
    mask = torch.randn(BATCH, 1, LENGTH, LENGTH)
    with pytest.warns(UserWarning, match="is not sampled, but computed with that mask"):
        compile_with_passes(layer, *full(), mask)


def scaled_with_the_scores(q, k, v, mask):
    return ((q @ k.mT + mask) * SCALE).softmax(-1) @ v


def written_to(q, k, v, mask):
    weights = (q @ k.mT * SCALE + mask).softmax(-1)
    mask.mul_(1.0)
    return weights @ v


def written_to_after_it_filled(q, k, v, mask):
    weights = (q @ k.mT * SCALE).masked_fill(mask, FLOAT_MIN).softmax(-1)
    mask.logical_not_().logical_not_()
    return weights @ v


def weights_are_returned(q, k, v, mask):
    weights = (q @ k.mT * SCALE + mask).softmax(-1)
    return weights @ v, weights


KEPT = [
    pytest.param(
        scaled_with_the_scores, "it is scaled together with the scores", id="scaled with the scores"
    ),
    pytest.param(written_to, "it is written in place", id="written to"),
    pytest.param(weights_are_returned, "attention weights are an output", id="weights are returned"),
]


@pytest.mark.parametrize("function, reason", KEPT)
def test_what_is_not_read(function, reason):
    (record,) = compile_with_passes(function, *full(), causal(0)).records
    assert record.outcome == "kept" and reason in record.reason
    assert ("not read when it runs" in record.reason) == ("weights" not in reason)


def test_a_mask_that_changes_after_it_filled_the_scores_is_not_read():
    (record,) = compile_with_passes(written_to_after_it_filled, *full(), causal(0) < 0).records
    assert record.outcome == "kept" and "not proven" in record.reason


def test_a_mask_that_fills_the_scores_is_read():
    def filled(q, k, v, mask):
        return (q @ k.mT * SCALE).masked_fill(mask, FLOAT_MIN).softmax(-1) @ v

    assert compile_with_passes(filled, *full(), causal() < 0).outcomes == [LATE]


def test_a_mask_for_each_head_is_not_read():
    backend = compile_with_passes(layer, *full(), causal().expand(-1, HEADS, -1, -1).contiguous())
    (record,) = backend.records
    assert record.outcome == "kept"
    assert "not read when it runs: it is not one for all heads" in record.reason


def test_a_mask_of_another_dtype_in_sdpa_is_not_read():
    operands = (x.bfloat16() for x in full())
    (record,) = compile_with_passes(sdpa, *operands, causal(), tolerance=0.0).records
    assert record.outcome == "kept"
    assert "not read when it runs: SDPA adds torch.float32 to scores of torch.bfloat16" in record.reason


def test_a_bias_that_the_graph_computes_is_not_read():
    def biased(q, k, v, slope):
        distance = torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]
        return layer(q, k, v, (distance * slope).exp())

    (record,) = compile_with_passes(biased, *full(), torch.tensor(0.1)).records
    assert record.outcome == "kept"
    assert "not read when it runs: its floats are computed in the graph" in record.reason


@pytest.mark.parametrize("function", [layer, sdpa, with_sinks])
def test_training_is_kept(function):
    operands = [x.requires_grad_() for x in full()]
    (record,) = compile_with_passes(function, *operands, causal(), training=True).records
    assert record.outcome == "kept" and "training" in record.reason
