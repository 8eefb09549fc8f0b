"""Repeated heads are traced back only where each head is repeated next to itself."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import BATCH, HEAD_DIM, HEADS, KV_HEADS, LENGTH, added, grouped, repeat_kv
from support.graphs import compile_with_passes

N = HEADS // KV_HEADS


def by_repeat(x):
    return x.unsqueeze(2).repeat(1, 1, N, 1, 1).flatten(1, 2)


def by_expand_and_view(x):
    return x[:, :, None].expand(-1, -1, N, -1, -1).contiguous().view(BATCH, HEADS, LENGTH, HEAD_DIM)


def by_broadcast_to(x):
    return torch.broadcast_to(x[:, :, None], (BATCH, KV_HEADS, N, LENGTH, HEAD_DIM)).reshape(
        BATCH, HEADS, LENGTH, HEAD_DIM
    )


def by_repeat_interleave(x):
    return torch.repeat_interleave(x, dim=1, repeats=N)


def by_ellipsis(x):
    return x.transpose(1, 2)[..., None, :].expand(-1, -1, -1, N, -1).flatten(2, 3).transpose(1, 2)


def tiled(x):
    return x.repeat(1, N, 1, 1)


def tiled_by_expand(x):
    return x[:, None].expand(BATCH, N, KV_HEADS, LENGTH, HEAD_DIM).reshape(BATCH, HEADS, LENGTH, HEAD_DIM)


def concatenated(x):
    return torch.cat([x, x], 1)


def attention(repeat):
    return lambda q, k, v: F.scaled_dot_product_attention(q, repeat(k), repeat(v), is_causal=True)


@pytest.mark.parametrize(
    "repeat, kv_heads",
    [
        pytest.param(repeat_kv, KV_HEADS, id="transformers"),
        pytest.param(by_repeat, KV_HEADS, id="unsqueeze, repeat, flatten"),
        pytest.param(by_expand_and_view, KV_HEADS, id="expand, contiguous, view"),
        pytest.param(by_broadcast_to, KV_HEADS, id="broadcast_to"),
        pytest.param(by_repeat_interleave, KV_HEADS, id="repeat_interleave"),
        pytest.param(by_ellipsis, KV_HEADS, id="before the transpose, with an ellipsis"),
        pytest.param(tiled, HEADS, id="tiled"),
        pytest.param(tiled_by_expand, HEADS, id="tiled by expand"),
        pytest.param(concatenated, HEADS, id="concatenated"),
    ],
)
def test_order_of_the_copies_decides(repeat, kv_heads):
    backend = compile_with_passes(attention(repeat), *grouped())
    assert backend.outcomes == [("sampled", "sampled")]
    assert backend.records[0].kv_heads == kv_heads


def test_key_and_value_must_repeat_alike():
    q, k, _ = grouped()
    value = torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM)
    backend = compile_with_passes(
        lambda q, k, v: F.scaled_dot_product_attention(q, repeat_kv(k), v, is_causal=True), q, k, value
    )
    assert backend.records[0].kv_heads == HEADS


def test_short_repeated_attention_reads_the_unrepeated_heads():
    backend = compile_with_passes(attention(repeat_kv), *grouped(), min_seq_len=4096)
    assert backend.outcomes == [("exact", "sdpa_causal")]
    (node,) = (n for n in backend.after[0].graph.nodes if "scaled_dot_product" in str(n.target))
    assert node.kwargs["enable_gqa"] is True
    assert [str(n) for n in backend.after[0].graph.nodes if "expand" in str(n.target)] == []


def _sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _written_out(q, k, v):
    scores = torch.matmul(q, k.transpose(-1, -2)) * HEAD_DIM**-0.5
    return torch.matmul((scores + added()).softmax(-1), v)


def _merged(q, k, v):
    q, k, v = (x.reshape(BATCH * HEADS, LENGTH, HEAD_DIM) for x in (q, k, v))
    q[:, :3] = 0.5
    scores = torch.bmm(q, k.transpose(1, 2)) * HEAD_DIM**-0.5
    return torch.bmm((scores + added()).softmax(-1), v)


def _key_set(k, v):
    k[..., :3, :] = 0.25


def _value_scaled(k, v):
    v.mul_(-2.0)


@pytest.mark.parametrize("write", [_key_set, _value_scaled])
@pytest.mark.parametrize("repeat", [repeat_kv, by_repeat_interleave, by_ellipsis])
@pytest.mark.parametrize("function", [_sdpa, _written_out])
def test_heads_that_are_written_to_once_they_were_repeated_are_read_as_they_are_then(function, repeat, write):
    def written(q, k, v):
        k, v = repeat(k), repeat(v)
        write(k, v)
        return function(q, k, v)

    backend = compile_with_passes(written, *grouped())
    assert all(record.kv_heads in (HEADS, "?") for record in backend.records)


def test_a_copy_that_merges_batch_and_heads_is_read_as_it_is_written():
    def by_position(q, k, v):
        return _merged(*(x.transpose(1, 2) for x in (q, k, v)))

    compile_with_passes(by_position, *(torch.randn(BATCH, LENGTH, HEADS, HEAD_DIM) for _ in range(3)))
