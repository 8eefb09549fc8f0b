"""Under autograd only forms with a gradient are used, and gradients do not change."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import FLOAT_MIN, SCALE, added, allowed, grouped, left_padding, repeat_kv
from support.graphs import SDPA_OPS, compile_with_passes

sdpa = F.scaled_dot_product_attention


def masked_sdpa(q, k, v):
    return sdpa(q, repeat_kv(k), repeat_kv(v), attn_mask=allowed())


def written_out(q, k, v):
    weights = (q @ repeat_kv(k).mT * SCALE + added(FLOAT_MIN)).softmax(-1)
    return F.dropout(weights, p=0.0, training=True) @ repeat_kv(v)


def padded(q, k, v):
    mask = allowed()[None, None] & left_padding().bool()[:, None, None, :]
    return sdpa(q, repeat_kv(k), repeat_kv(v), attn_mask=mask)


def window(q, k, v):
    difference = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])
    return sdpa(q, repeat_kv(k), repeat_kv(v), attn_mask=(difference >= 0) & (difference < 9))


def gradients(function, tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    function(*leaves).square().sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize(
    "function", [pytest.param(masked_sdpa, id="sdpa"), pytest.param(written_out, id="written out")]
)
def test_plain_causal_becomes_sdpa_with_the_same_gradients(function):
    tensors = grouped()
    backend = compile_with_passes(function, *(x.clone().requires_grad_() for x in tensors), training=True)
    assert backend.outcomes == [("exact", "sdpa_causal")]
    assert backend.ops() == SDPA_OPS
    compiled = torch.compile(function, backend=backend)
    for one, other in zip(gradients(compiled, tensors), gradients(function, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [pytest.param(padded, id="padded"), pytest.param(window, id="window")])
def test_what_has_no_form_with_a_gradient_is_kept(function):
    tensors = [tensor.requires_grad_() for tensor in grouped()]
    backend = compile_with_passes(function, *tensors, training=True, tolerance=0.0)
    assert backend.outcomes == [("kept", "")]
    assert "training" in backend.records[0].reason


def test_no_grad_inside_training_code_is_inference():
    def function(q, k, v):
        with torch.no_grad():
            return masked_sdpa(q, k, v)

    tensors = [tensor.requires_grad_() for tensor in grouped()]
    backend = compile_with_passes(function, *tensors, training=True)
    assert backend.outcomes == [("sampled", "sampled")]
