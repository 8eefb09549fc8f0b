"""min_seq_len under dynamic shapes is a guard: short and long prompts get one graph each."""

import pytest
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


def run(function, lengths, marked=(2,), **limits):
    backend = PassesBackend(OPTIONS)
    compiled = torch.compile(function, backend=backend)
    with torch.no_grad():
        for length in lengths:
            arguments = tensors(length)
            for tensor in arguments:
                for dim in marked:
                    torch._dynamo.mark_dynamic(tensor, dim, **limits)
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


def padded(q, k, v):
    positions, padding = torch.arange(q.shape[2]), torch.arange(q.shape[2]) >= 3
    mask = (positions <= positions[:, None]) & padding
    return F.scaled_dot_product_attention(q, repeat_kv(k), repeat_kv(v), mask)


def square(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


LIMITS = {
    "both sides of min_seq_len": ({"min": 2, "max": 8192}, [40, 100, 63]),
    "above": ({"min": 64, "max": 8192}, [64, 100]),
    "below": ({"min": 2, "max": 63}, [40, 63]),
    "around it": ({"min": 2, "max": 64}, [64, 63]),
}
DECLARED = "a length's range is declared (mark_dynamic with min and max)"


@pytest.mark.parametrize("limits, lengths", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize(
    "function, outcome",
    [(causal, ("exact", "sdpa_causal")), (square, ("exact", "unchanged")), (padded, ("kept", ""))],
)
def test_a_declared_range_is_served_by_one_graph(function, outcome, limits, lengths):
    backend = run(function, lengths, **limits)
    assert backend.outcomes == [outcome]
    assert DECLARED in backend.records[0].reason


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_a_declared_range_behind_the_passes(inner):
    options = {"backend": "sampleattn", "options": {"min_seq_len": 64, "inner": inner}}
    compiled = torch.compile(causal, **options)
    with torch.no_grad():
        arguments = tensors(100)
        for tensor in arguments:
            torch._dynamo.mark_dynamic(tensor, 2, min=2, max=8192)
        torch.testing.assert_close(compiled(*arguments), causal(*arguments), rtol=1e-4, atol=1e-5)
