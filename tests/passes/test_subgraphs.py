"""Attention in child graph modules: rewritten there, with masks that the parent builds."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from support.attention import FLOAT_MIN, SCALE, allowed, full, grouped, left_padding, repeat_kv
from support.graphs import SAMPLED_OPS, SDPA_OPS, compile_with_passes
from torch import fx

from sa_compile.passes.graph.operations import is_higher_order

sdpa = F.scaled_dot_product_attention


@torch.compiler.nested_compile_region
def region(q, k, v, mask):
    return sdpa(q, k, v, attn_mask=mask, enable_gqa=True)


@torch.compiler.nested_compile_region
def eager_region(q, k, v, mask):
    scores = q @ repeat_kv(k).mT * SCALE + mask[:, :, :, : k.shape[2]]
    return scores.softmax(-1) @ repeat_kv(v)


@torch.compiler.nested_compile_region
def region_with_its_own_mask(q, k, v):
    return sdpa(q, k, v, attn_mask=allowed(), enable_gqa=True)


def padded_mask(padding):
    return allowed()[None, None] & padding.bool()[:, None, None, :]


def mask_of_its_own(q, k, v, padding):
    return region_with_its_own_mask(region_with_its_own_mask(q, k, v), k, v)


def causal_from_parent(q, k, v, padding):
    mask = allowed()
    return region(region(q, k, v, mask), k, v, mask)


def padded_from_parent(q, k, v, padding):
    mask = padded_mask(padding)
    return region(region(q, k, v, mask), k, v, mask)


def written_out(q, k, v, padding):
    mask = torch.where(padded_mask(padding), 0.0, FLOAT_MIN)
    return eager_region(eager_region(q, k, v, mask), k, v, mask)


def two_paddings(q, k, v, padding):
    return region(region(q, k, v, padded_mask(padding)), k, v, padded_mask(padding.flip(0)))


REGIONS = [
    pytest.param(mask_of_its_own, "causal", None, id="mask of its own"),
    pytest.param(causal_from_parent, "causal", None, id="causal from the parent"),
    pytest.param(padded_from_parent, "causal & key_valid", None, id="padded from the parent"),
    pytest.param(padded_from_parent, "causal & key_valid", True, id="padded from the parent, dynamic"),
    pytest.param(written_out, "causal & key_valid", None, id="written out"),
    pytest.param(two_paddings, "causal & key_valid", None, id="other padding at each call"),
]


@pytest.mark.parametrize("function, mask, dynamic", REGIONS)
def test_region_called_twice_is_rewritten_once_a_body(function, mask, dynamic):
    backend = compile_with_passes(function, *grouped(), left_padding(), dynamic=dynamic)
    parent = backend.after[0]
    bodies = {name: body for name, body in parent.named_children() if isinstance(body, fx.GraphModule)}
    # One body serves both calls, but under dynamic shapes torch 2.11 captures one for each.
    assert len(bodies) == 1 or dynamic
    assert backend.outcomes == [("sampled", "sampled")] * len(bodies)
    assert {record.mask for record in backend.records} == {mask}
    assert backend.ops() == {op: count * len(bodies) for op, count in SAMPLED_OPS.items()}
    assert backend.score_shaped() == []
    calls = [node for node in parent.graph.nodes if is_higher_order(node, "invoke_subgraph")]
    assert len(calls) == 2
    for call in calls:
        inputs = [node for node in bodies[call.args[0].target].graph.nodes if node.op == "placeholder"]
        assert len(call.args) - 2 == len(inputs)


def different_masks(q, k, v, padding):
    return region(region(q, k, v, allowed()), k, v, allowed().flip(0))


def mask_is_an_input(q, k, v, padding):
    mask = padding[:, None, None, :].expand(-1, 1, q.shape[2], -1) > q.sum()
    return region(region(q, k, v, mask), k, v, mask)


@pytest.mark.parametrize(
    "function",
    [pytest.param(different_masks, id="different masks"), pytest.param(mask_is_an_input, id="opaque mask")],
)
def test_kept_with_its_mask(function):
    backend = compile_with_passes(function, *grouped(), left_padding(), tolerance=0.0)
    assert backend.outcomes == [("kept", "")]
    assert "mask not proven" in backend.records[0].reason
    assert set(backend.ops()) == set(SDPA_OPS)


def checkpointed(q, k, v):
    def body(q, k, v, mask):
        return sdpa(q, repeat_kv(k), repeat_kv(v), attn_mask=mask)

    return torch.utils.checkpoint.checkpoint(body, q, k, v, allowed(), use_reentrant=False)


def test_checkpointed_body_in_training():
    tensors = [tensor.requires_grad_() for tensor in grouped()]
    backend = compile_with_passes(checkpointed, *tensors, training=True)
    assert backend.outcomes == [("exact", "sdpa_causal")]
    assert backend.score_shaped() == []


def sdpa_in_region(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def in_branch(q, k, v):
    def checkpointed(q, k, v):
        return torch.utils.checkpoint.checkpoint(sdpa_in_region, q, k, v, use_reentrant=False) * 2.0

    return torch.cond(q.sum() > 0, sdpa_in_region, checkpointed, (q, k, v))


def test_attention_in_branches_has_rows():
    backend = compile_with_passes(in_branch, *full())
    reasons = [(record.outcome, record.reason) for record in backend.records]
    assert reasons == [("kept", "inside cond"), ("kept", "inside cond")]


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        """SDPA in a function of autograd"""
        ctx.save_for_backward(q, k, v)
        return sdpa_in_region(q, k, v)

    @staticmethod
    def backward(ctx, grad):
        """Some gradient that an attention is in."""
        q, k, v = ctx.saved_tensors
        return sdpa_in_region(grad, k, v), None, None


def test_attention_in_a_function_of_autograd_has_one_row():
    q, k, v = (x.requires_grad_() for x in full())
    backend = compile_with_passes(Scaled.apply, q, k, v, training=True)
    assert [(r.outcome, r.reason) for r in backend.records] == [("kept", "inside autograd_function_apply")]
