"""method="adaptive": the ops it emits, and that tau = 0 and peak = 0 are dense attention."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import FLOAT_MIN, SCALE, SINKS, grouped, left_padding, repeat_kv
from support.graphs import PassesBackend, compile_with_passes
from support.models import SMALL_BLOCKS

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig
from sa_compile.prefill import CausalAttention

OPS = {
    **{"block_representatives": 1, "select_adaptive": 1, "select_budget_rest": 1},
    "block_rest_attention": 1,
}
OTHER_OPS = (
    *("sample_scores", "select_blocks", "select_peaks", "block_mean_attention"),
    "block_sparse_attention",
)
BY_TAU = {"method": "adaptive", "peak": 1.0, "landmarks": 15}
EXACT = {**BY_TAU, "tau": 0.0, "min_seq_len": 32}
# On random tensors: blocks of which a row's share is above and below.
PEAKS = {"method": "adaptive", "peak": 0.6, "landmarks": 3, "window_blocks": 1, "last_rows": 0}


def causal(q, k, v):
    offset = k.shape[2] - q.shape[2]
    mask = torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + offset
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def beside_sinks(q, k, v):
    mask = torch.full((q.shape[2], k.shape[2]), FLOAT_MIN).triu(1)
    weights = torch.matmul(q, repeat_kv(k).transpose(2, 3)) * SCALE + mask
    sinks = SINKS.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], -1)
    weights = F.softmax(torch.cat([weights, sinks], dim=-1), dim=-1)[..., :-1]
    return torch.matmul(weights, repeat_kv(v))


def padded(q, k, v, padding):
    length = q.shape[2]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None] & padding.bool()[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def emitted(backend):
    names = [str(node.target) for node in backend.after[-1].graph.nodes if "sampleattn" in str(node.target)]
    return {name: sum(name in target for target in names) for name in (*OPS, *OTHER_OPS)}


def arguments(backend, name):
    (node,) = (node for node in backend.after[-1].graph.nodes if name in str(node.target))
    return node.args


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        pytest.param(causal, grouped(), id="plain"),
        pytest.param(padded, (*grouped(), left_padding()), id="padded"),
    ],
)
def test_tau_zero_is_dense_attention(function, inputs):
    backend = compile_with_passes(function, *inputs, **EXACT)
    assert backend.outcomes == [("sampled", "sampled")]
    assert emitted(backend) == {**OPS, **dict.fromkeys(OTHER_OPS, 0)}
    assert backend.score_shaped() == []


def test_options_reach_the_ops():
    options = {"tau": 0.25, "landmarks": 3, "window_blocks": 3, "keep_sink": False, "last_rows": 40}
    backend = compile_with_passes(causal, *grouped(), tolerance=1e9, **{**BY_TAU, **options})
    assert arguments(backend, "block_representatives")[2:] == (16, 3)
    assert arguments(backend, "select_adaptive")[-6:] == (16, 16, 0.25, False, 3, 40)
    options = {**BY_TAU, "block_q": 64, "block_k": 16, "window_blocks": 2}
    wide = compile_with_passes(causal, *grouped(), tolerance=1e9, **options)
    assert arguments(wide, "select_adaptive")[-2:] == (
        8,
        128,
    )  # two diagonals of 64 rows are eight of 16 keys


def test_a_peak_below_one_takes_taus_place():
    options = {**PEAKS, "peak": 0.25, "window_blocks": 3, "keep_sink": False, "last_rows": 40}
    backend = compile_with_passes(causal, *grouped(), tolerance=1e9, **options)
    assert emitted(backend) == {**OPS, **dict.fromkeys(OTHER_OPS, 0), "select_adaptive": 0, "select_peaks": 1}
    assert arguments(backend, "block_representatives")[2:] == (16, 3)
    assert arguments(backend, "select_peaks")[-6:] == (16, 16, 0.25, False, 3, 40)


LONG = tuple(
    torch.randn(2, heads, 160, 16, generator=torch.Generator().manual_seed(heads + n))
    for n, heads in enumerate((4, 2, 2))
)
PADDING = (torch.arange(160) >= torch.tensor([[21], [0]])).long()


def in_chunks(q, k, v):
    return causal(q[:, :, 60:], k, v)


@pytest.mark.parametrize("budget", [1.0, 0.5])
@pytest.mark.parametrize(
    ("function", "inputs", "where"),
    [
        pytest.param(causal, LONG, {}, id="plain"),
        pytest.param(padded, (*LONG, PADDING), {"key_valid": PADDING}, id="padded"),
        pytest.param(in_chunks, LONG, {"q_offset": 60}, id="later-chunk"),
        pytest.param(beside_sinks, LONG, {"sinks": SINKS}, id="sinks"),
    ],
)
def test_peaks_compiled_are_those_of_the_uncompiled_path(function, inputs, where, budget):
    options = {**SMALL_BLOCKS, **PEAKS, "budget": budget, "budget_tau": 1.0}
    backend = PassesBackend(options)
    torch._dynamo.reset()
    with torch.no_grad():
        found, full = torch.compile(function, backend=backend)(*inputs), function(*inputs)
    assert backend.outcomes == [("sampled", "sampled")]
    assert emitted(backend)["select_peaks"] == 1 and backend.score_shaped() == []
    query, key, value = inputs[:3]
    scale = SCALE if function is beside_sinks else query.shape[-1] ** -0.5
    attention = CausalAttention(query[:, :, where.get("q_offset", 0) :], key, value, scale, **where)
    expected, _ = prefill.sampled(attention, SampleAttentionConfig(**options))
    rows = where["key_valid"].bool() if "key_valid" in where else torch.ones(expected.shape[::2]).bool()
    found, expected, full = (x.transpose(1, 2)[rows] for x in (found, expected, full))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - full).abs().max() > 1e-3, "nothing was left out"


def test_a_budget_and_its_rows_reach_their_op():
    options = {
        "budget": 0.2,
        "budget_tau": 0.3,
        "budget_rows": 8,
        "window_blocks": 3,
        "keep_sink": False,
    }
    backend = compile_with_passes(causal, *grouped(), tolerance=1e9, method="adaptive", **options)
    assert arguments(backend, "select_budget_rest")[-7:] == (16, 16, 0.2, 0.3, 8, False, 3)


@pytest.mark.parametrize("rest", [0.0, 0.5])
@pytest.mark.parametrize("peak", [0.0, 1.0])
def test_sinks_reach_what_selects_and_what_attends(rest, peak):
    options = {**EXACT, "peak": peak, "rest": rest, "block_q": 16, "block_k": 16}
    backend = compile_with_passes(beside_sinks, *grouped(), **options)
    assert backend.outcomes == [("sampled", "sampled")]
    attends, place = ("block_rest_attention", 8) if rest else ("block_sparse_attention", 6)
    sinks = arguments(backend, attends)[place]
    assert isinstance(sinks, torch.fx.Node)
    assert arguments(backend, "select_peaks" if peak < 1 else "select_adaptive")[-2:] == (1, sinks)
    assert arguments(backend, "select_budget")[-2:] == (1, sinks)


@pytest.mark.parametrize("rest", [0.0, 0.3, 1.0])
def test_the_part_of_the_rest_reaches_its_op(rest):
    backend = compile_with_passes(causal, *grouped(), tolerance=1e9, **BY_TAU, rest=rest)
    if rest:
        assert arguments(backend, "block_rest_attention")[-4:] == (rest, 0, 16, 16)
    else:
        assert emitted(backend) == {
            **{"block_representatives": 1, "select_adaptive": 1, "block_sparse_attention": 1},
            **dict.fromkeys(("select_budget_rest", "block_rest_attention"), 0),
            **dict.fromkeys(("sample_scores", "select_blocks", "select_peaks", "block_mean_attention"), 0),
        }
        assert arguments(backend, "select_budget")


def test_without_a_budget_tau_decides_alone_and_means_may_stand_for_what_is_left_out():
    options = {**BY_TAU, "budget": 1.0, "means": True}
    backend = compile_with_passes(causal, *grouped(), tolerance=1e9, **options)
    assert emitted(backend) == {
        **{"block_representatives": 1, "select_adaptive": 1, "block_mean_attention": 1},
        **dict.fromkeys(("select_budget_rest", "block_rest_attention", "block_sparse_attention"), 0),
        **{"sample_scores": 0, "select_blocks": 0, "select_peaks": 0},
    }


@pytest.mark.parametrize("peak", [0.0, 1.0])
def test_one_dynamic_graph_serves_later_chunks_of_any_length(peak):
    torch._dynamo.reset()
    backend = PassesBackend({**EXACT, "peak": peak})
    compiled = torch.compile(causal, backend=backend, dynamic=True)
    with torch.no_grad():
        for queries, keys in ((70, 140), (80, 100), (90, 700)):
            q = torch.randn(2, 4, queries, 16)
            k, v = torch.randn(2, 2, 2, keys, 16)
            torch.testing.assert_close(compiled(q, k, v), causal(q, k, v), rtol=1e-4, atol=1e-5)
    assert backend.outcomes == [("sampled", "sampled")]
    used, unused = ("select_peaks", "select_adaptive") if peak < 1 else ("select_adaptive", "select_peaks")
    assert emitted(backend) == {**dict.fromkeys(OTHER_OPS, 0), **OPS, used: 1, unused: 0}
