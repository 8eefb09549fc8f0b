"""Masks from outside of the graph that attention written out adds: read when the graph runs, or kept."""

import pytest
import torch
from support.attention import BATCH, FLOAT_MIN, HEADS, KV_HEADS, LENGTH, SCALE, full, grouped, repeat_kv
from support.graphs import compile_with_passes

LATE = ("sampled", "late")


def causal(pad=5):
    """float [B, 1, S, S]; the first prompt starts with padding, whose rows see no key."""
    mask = torch.zeros(BATCH, 1, LENGTH, LENGTH)
    mask.masked_fill_(~torch.ones(LENGTH, LENGTH).bool().tril(), FLOAT_MIN)
    mask[0, ..., :pad] = FLOAT_MIN
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


@pytest.mark.parametrize("function", [layer, batched_products, cut_to_the_keys])
def test_a_mask_that_comes_with_the_call(function):
    assert compile_with_passes(function, *full(), causal()).outcomes == [LATE]


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


def with_sinks(q, k, v, mask):
    scores = q @ k.mT * SCALE + mask
    sinks = torch.ones(1, HEADS, 1, 1).expand(BATCH, -1, LENGTH, -1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v


def weights_are_returned(q, k, v, mask):
    weights = (q @ k.mT * SCALE + mask).softmax(-1)
    return weights @ v, weights


KEPT = [
    pytest.param(scaled_with_the_scores, "SDPA's bool masks are read", id="scaled with the scores"),
    pytest.param(written_to, "input of the graph", id="written to"),
    pytest.param(with_sinks, "SDPA's bool masks are read", id="sinks"),
    pytest.param(weights_are_returned, "attention weights are an output", id="weights are returned"),
]


@pytest.mark.parametrize("function, reason", KEPT)
def test_what_is_not_read(function, reason):
    (record,) = compile_with_passes(function, *full(), causal(0)).records
    assert record.outcome == "kept" and reason in record.reason


def test_a_mask_that_changes_after_it_filled_the_scores_is_not_read():
    (record,) = compile_with_passes(written_to_after_it_filled, *full(), causal(0) < 0).records
    assert record.outcome == "kept" and "not proven" in record.reason


def test_a_mask_that_fills_the_scores_is_read():
    def filled(q, k, v, mask):
        return (q @ k.mT * SCALE).masked_fill(mask, FLOAT_MIN).softmax(-1) @ v

    assert compile_with_passes(filled, *full(), causal() < 0).outcomes == [LATE]


def test_a_mask_for_each_head_is_not_read():
    backend = compile_with_passes(layer, *full(), causal().expand(-1, HEADS, -1, -1).contiguous())
    assert [record.outcome for record in backend.records] == ["kept"]


def test_a_bias_that_the_graph_computes_is_not_read():
    def biased(q, k, v, slope):
        distance = torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]
        return layer(q, k, v, (distance * slope).exp())

    (record,) = compile_with_passes(biased, *full(), torch.tensor(0.1)).records
    assert record.outcome == "kept"


def test_training_is_kept():
    operands = [x.requires_grad_() for x in full()]
    (record,) = compile_with_passes(layer, *operands, causal(), training=True).records
    assert record.outcome == "kept" and "training" in record.reason
