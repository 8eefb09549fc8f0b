"""min_seq_len under dynamic shapes is a guard: short and long prompts get one graph each."""

import torch
import torch.nn.functional as F
from support.attention import repeat_kv
from support.graphs import PassesBackend

OPTIONS = {"min_seq_len": 64}


def tensors(length, batch=2):
    return (
        torch.randn(batch, 4, length, 16),
        torch.randn(batch, 2, length, 16),
        torch.randn(batch, 2, length, 16),
    )


def causal(q, k, v):
    positions = torch.arange(q.shape[2])
    return F.scaled_dot_product_attention(q, repeat_kv(k), repeat_kv(v), positions <= positions[:, None])


def run(function, lengths, marked=(2,)):
    backend = PassesBackend(OPTIONS)
    compiled = torch.compile(function, backend=backend)
    with torch.no_grad():
        for length in lengths:
            arguments = tensors(length)
            for tensor in arguments:
                for dim in marked:
                    torch._dynamo.mark_dynamic(tensor, dim)
            torch.testing.assert_close(compiled(*arguments), function(*arguments), rtol=1e-4, atol=1e-5)
    return backend


def test_one_graph_for_short_and_one_for_long_prompts():
    backend = run(causal, [40, 50, 100, 30, 200, 63, 64])
    assert backend.outcomes == [("exact", "sdpa_causal"), ("sampled", "sampled")]
    assert all(isinstance(record.q_len, str) for record in backend.records)  # symbolic
    assert backend.score_shaped() == []


def test_symbolic_batch():
    backend = run(causal, [40, 100], marked=(0, 2))
    assert [record.outcome for record in backend.records] == ["exact", "sampled"]


def test_lengths_that_change_by_themselves():
    backend = PassesBackend(OPTIONS)
    compiled = torch.compile(causal, backend=backend)
    with torch.no_grad():
        for length in (70, 80, 90, 100, 110):
            compiled(*tensors(length))
    assert [record.q_len for record in backend.records][0] == 70
    assert len(backend.records) == 2  # static, then dynamic


def test_second_chunk_of_a_growing_cache():
    def function(q, k, v):
        offset = k.shape[2] - q.shape[2]
        mask = torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + offset
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    backend = PassesBackend(OPTIONS)
    compiled = torch.compile(function, backend=backend, dynamic=True)
    with torch.no_grad():
        for queries, keys in ((70, 140), (80, 100), (90, 300)):
            q, (_, k, v) = tensors(queries)[0], tensors(keys)
            torch.testing.assert_close(compiled(q, k, v), function(q, k, v), rtol=1e-4, atol=1e-5)
    assert backend.outcomes == [("sampled", "sampled")]
    assert "offset" in backend.records[0].mask
