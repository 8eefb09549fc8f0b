"""Every spelling of scaled_dot_product_attention is found; what can not be rewritten says why."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import SCALE, added, allowed, by_position, full, grouped, repeat_kv, single
from support.graphs import SAMPLED_OPS, SDPA_OPS, compile_with_passes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_upper_left

sdpa = F.scaled_dot_product_attention


def positional(q, k, v):
    return sdpa(q, k, v, None, 0.0, True)


def keywords(q, k, v):
    return sdpa(query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, is_causal=True, scale=0.3)


def private_name(q, k, v):
    return torch._C._nn.scaled_dot_product_attention(q, k, v, is_causal=True)


def aten_op(q, k, v):
    return torch.ops.aten.scaled_dot_product_attention.default(q, k, v, None, 0.0, True)


def grouped_heads(q, k, v):
    return sdpa(q, k, v, is_causal=True, enable_gqa=True)


def bool_mask(q, k, v):
    return sdpa(q, k, v, attn_mask=allowed())


def float_mask(q, k, v):
    return sdpa(q, k, v, attn_mask=added(), scale=SCALE * 2)


def mask_of_rank_4(q, k, v):
    return sdpa(q, k, v, allowed()[None, None].expand(q.shape[0], 1, -1, -1))


def repeated_heads(q, k, v):
    return sdpa(q, repeat_kv(k), repeat_kv(v), attn_mask=allowed())


def heads_behind_positions(q, k, v):
    return sdpa(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2).flatten(2)


def three_dimensions(q, k, v):
    return sdpa(q[:, 0], k[:, 0], v[:, 0], is_causal=True)


def bias_object(q, k, v):
    return sdpa(q, k, v, attn_mask=causal_upper_left(q.shape[2], k.shape[2]))


def expanded_head(q, k, v):
    return sdpa(q, k.expand_as(q), v.expand(-1, q.shape[1], -1, -1), is_causal=True)


FOUND = [
    pytest.param(positional, full, 4, id="positional"),
    pytest.param(keywords, full, 4, id="keywords"),
    pytest.param(private_name, full, 4, id="torch._C._nn"),
    pytest.param(aten_op, full, 4, id="aten"),
    pytest.param(grouped_heads, grouped, 2, id="enable_gqa"),
    pytest.param(bool_mask, full, 4, id="bool mask"),
    pytest.param(float_mask, full, 4, id="float mask"),
    pytest.param(mask_of_rank_4, full, 4, id="mask of rank 4"),
    pytest.param(repeated_heads, grouped, 2, id="repeat_kv"),
    pytest.param(heads_behind_positions, by_position, 4, id="[B, S, H, D] transposed"),
    pytest.param(three_dimensions, full, 1, id="[N, S, D]"),
    pytest.param(bias_object, full, 4, id="causal_upper_left"),
    pytest.param(expanded_head, single, 1, id="one head expanded"),
]


@pytest.mark.parametrize("dynamic", [pytest.param(None, id="static"), pytest.param(True, id="dynamic")])
@pytest.mark.parametrize("function, tensors, kv_heads", FOUND)
def test_long_prompt_is_sampled(function, tensors, kv_heads, dynamic):
    backend = compile_with_passes(function, *tensors(), dynamic=dynamic)
    assert backend.ops_before() == SDPA_OPS
    assert backend.ops() == SAMPLED_OPS
    assert backend.outcomes == [("sampled", "sampled")]
    assert backend.records[0].kv_heads == kv_heads
    assert backend.score_shaped() == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_sampled(dtype):
    backend = compile_with_passes(grouped_heads, *grouped(dtype), tolerance=1e-2)
    assert backend.outcomes == [("sampled", "sampled")]


def test_scale_that_is_a_graph_node():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scaling = 0.3

        def forward(self, q, k, v):
            return sdpa(q, k, v, is_causal=True, scale=self.scaling)

    backend = compile_with_passes(Scaled().eval(), *full(), dynamic=True)
    assert backend.outcomes == [("sampled", "sampled")]


def pinned_backend(q, k, v):
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(q, k, v, is_causal=True)


def dropout(q, k, v):
    return sdpa(q, k, v, dropout_p=1e-9, is_causal=True)


def learned_bias(q, k, v):
    return sdpa(q, k, v, attn_mask=q @ k.mT)


def no_mask(q, k, v):
    return sdpa(q, k, v)


def double_precision(q, k, v):
    return sdpa(q.double(), k.double(), v.double(), is_causal=True)


KEPT = [
    pytest.param(pinned_backend, "pinned SDPA backend", id="pinned backend"),
    pytest.param(dropout, "dropout in training", id="dropout"),
    pytest.param(learned_bias, "mask not proven", id="bias"),
    pytest.param(no_mask, "bidirectional attention, nothing masked", id="bidirectional"),
    pytest.param(double_precision, "dtype torch.float64", id="float64"),
]


@pytest.mark.parametrize("function, reason", KEPT)
def test_kept_as_it_was(function, reason):
    backend = compile_with_passes(function, *full(), tolerance=0.0 if function is not dropout else 1e-5)
    assert backend.outcomes == [("kept", "")]
    assert backend.records[0].reason.startswith(reason)
    assert str(backend.after[0].graph) == str(backend.before[0].graph)


def test_after_the_pinned_block_attention_is_free_again():
    def function(q, k, v):
        return sdpa(pinned_backend(q, k, v), k, v, is_causal=True)

    backend = compile_with_passes(function, *full())
    assert [outcome for outcome, _ in backend.outcomes] == ["kept", "sampled"]


def test_repeats_read_before_the_key_changes_are_not_traced_back():
    def function(q, k, v):
        repeated = repeat_kv(k)
        k.mul_(2.0)
        return sdpa(q, repeated, repeat_kv(v), is_causal=True)

    backend = compile_with_passes(lambda q, k, v: function(q, k.clone(), v), *grouped())
    assert backend.outcomes == [("sampled", "sampled")]
    assert backend.records[0].kv_heads == 4
