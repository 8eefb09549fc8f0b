"""The table of decide.py: which outcome and form an attention gets, and that the result is the same."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import (
    BATCH,
    FLOAT_MIN,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LENGTH,
    SCALE,
    added,
    allowed,
    full,
    grouped,
    left_padding,
    repeat_kv,
)
from support.graphs import BLOCK_SPARSE_OPS, SAMPLED_OPS, SDPA_OPS, compile_with_passes

from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels import ops
from sa_compile.passes.decide import decide
from sa_compile.passes.graph.scan import GraphScan
from sa_compile.passes.mask.predicate import MaskPredicate
from sa_compile.passes.match import sdpa as sdpa_calls

sdpa = F.scaled_dot_product_attention
SHORT = {"min_seq_len": 4096}
CACHE = 80  # keys in a static cache, or of two chunks


def masked(mask):
    """SDPA under a mask that ``mask()`` builds in the graph, with grouped heads."""

    def function(q, k, v):
        return sdpa(q, k, v, attn_mask=mask(), enable_gqa=True)

    return function


def position_difference(keys=LENGTH, offset=0):
    return torch.arange(LENGTH)[:, None] + offset - torch.arange(keys)


def window():
    difference = position_difference()
    return (difference >= 0) & (difference < 20)


def chunk():
    q, k = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    return (q // 20 == k // 20) & (k <= q)


def packed():
    document = torch.cumsum(torch.arange(LENGTH) % 17 == 0, 0)
    return (document[:, None] == document) & (position_difference() >= 0)


def second_chunk():
    return position_difference(CACHE, CACHE - LENGTH) >= 0


def static_cache():
    return position_difference(CACHE) >= 0


def keys_of(length):
    return lambda: (
        torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM),
        torch.randn(BATCH, KV_HEADS, length, HEAD_DIM),
        torch.randn(BATCH, KV_HEADS, length, HEAD_DIM),
    )


CAUSAL_FORMS = [
    pytest.param(masked(allowed), grouped, "causal", "sampled", "sdpa_causal", id="causal"),
    pytest.param(
        masked(static_cache), keys_of(CACHE), "causal", "sampled", "sdpa_causal", id="static cache prefill"
    ),
    pytest.param(
        masked(second_chunk),
        keys_of(CACHE),
        "causal(offset=32)",
        "sampled",
        "block_sparse",
        id="second chunk",
    ),
    pytest.param(masked(window), grouped, "causal & window(20)", "block_sparse", "block_sparse", id="window"),
    pytest.param(masked(chunk), grouped, "causal & chunk(20)", "block_sparse", "block_sparse", id="chunk"),
    pytest.param(masked(packed), grouped, "causal & segments", "block_sparse", "block_sparse", id="packed"),
]


@pytest.mark.parametrize("function, tensors, mask, long, short", CAUSAL_FORMS)
def test_causal_masks(function, tensors, mask, long, short):
    ops = {"sampled": SAMPLED_OPS, "block_sparse": BLOCK_SPARSE_OPS, "sdpa_causal": SDPA_OPS}
    for options, form in (({}, long), (SHORT, short)):
        backend = compile_with_passes(function, *tensors(), **options)
        (record,) = backend.records
        assert (record.form, record.mask) == (form, mask)
        assert record.outcome == ("sampled" if form == "sampled" else "exact")
        assert backend.ops() == ops[form]
        assert backend.score_shaped() == []


@pytest.mark.parametrize("scale", [0.0, -0.25])
@pytest.mark.parametrize("mask", [allowed, window], ids=["causal", "window"])
def test_a_scale_that_is_not_positive_gives_what_the_model_gives(scale, mask):
    """SDPA on a CPU makes NaN of it with ``is_causal``, and not with the mask."""

    def attention(q, k, v):
        return sdpa(q, repeat_kv(k), repeat_kv(v), attn_mask=mask()[None, None], scale=scale)

    everything = {"peak": 0.0}
    for options, outcome in ((everything, "sampled"), ({**everything, **SHORT}, "kept")):
        (record,) = compile_with_passes(attention, *grouped(), **options).records
        assert record.outcome == (outcome if mask is allowed else "exact")


def padded_sdpa(q, k, v, padding):
    mask = allowed()[None, None] & padding.bool()[:, None, None, :]
    return sdpa(q, repeat_kv(k), repeat_kv(v), attn_mask=mask)


def padded_sdpa_float(q, k, v, padding):
    mask = allowed()[None, None] & padding.bool()[:, None, None, :]
    return sdpa(q, repeat_kv(k), repeat_kv(v), attn_mask=torch.where(mask, 0.0, FLOAT_MIN))


def padded_sdpa_infinity(q, k, v, padding):
    mask = allowed()[None, None] & padding.bool()[:, None, None, :]
    return sdpa(q, repeat_kv(k), repeat_kv(v), attn_mask=torch.where(mask, 0.0, -float("inf")))


def padded_eager(q, k, v, padding):
    mask = allowed()[None, None] & padding.bool()[:, None, None, :]
    scores = q @ repeat_kv(k).mT * SCALE + torch.where(mask, 0.0, FLOAT_MIN)
    return scores.softmax(-1) @ repeat_kv(v)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(padded_sdpa, id="bool mask: zeros"),
        pytest.param(padded_sdpa_infinity, id="-inf in SDPA: zeros"),
        pytest.param(padded_sdpa_float, id="finfo.min in SDPA: mean of the values"),
        pytest.param(padded_eager, id="finfo.min written out: mean of the values"),
    ],
)
@pytest.mark.parametrize("form, options", [("sampled", {}), ("block_sparse", SHORT)])
def test_rows_without_keys_keep_their_meaning(function, form, options):
    backend = compile_with_passes(function, *grouped(), left_padding(), **options)
    assert [record.form for record in backend.records] == [form]
    assert backend.records[0].mask == "causal & key_valid"
    assert backend.score_shaped() == []


def padded_with_infinity(q, k, v, padding):
    mask = allowed()[None, None] & padding.bool()[:, None, None, :]
    return (q @ k.mT * SCALE).masked_fill(~mask, -float("inf")).softmax(-1) @ v


def test_rows_that_would_be_nan_are_not_rebuilt():
    padding = torch.ones_like(left_padding())
    backend = compile_with_passes(padded_with_infinity, *full(), padding, tolerance=0.0)
    assert backend.outcomes == [("kept", "")]
    assert "NaN" in backend.records[0].reason


def test_rows_without_keys_under_fp16_are_not_rebuilt():
    def function(q, k, v, padding):
        mask = allowed()[None, None] & padding.bool()[:, None, None, :]
        low = torch.finfo(torch.float16).min
        scores = q @ k.mT * SCALE + torch.where(mask, torch.zeros((), dtype=q.dtype), low)
        return scores.softmax(-1) @ v

    backend = compile_with_passes(function, *full(torch.float16), left_padding(), tolerance=0.0)
    assert backend.outcomes == [("kept", "")]
    assert "fp16" in backend.records[0].reason


def test_short_prompt_that_gains_nothing_is_left_as_it_is():
    backend = compile_with_passes(lambda q, k, v: sdpa(q, k, v, is_causal=True), *full(), **SHORT)
    assert backend.outcomes == [("exact", "unchanged")]
    assert "already the cheapest exact form" in backend.records[0].reason
    assert str(backend.after[0].graph) == str(backend.before[0].graph)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda q, k, v: sdpa(q, repeat_kv(k), repeat_kv(v)), id="repeated heads"),
        pytest.param(
            lambda q, k, v: sdpa(q, k, v, attn_mask=torch.ones(LENGTH, LENGTH).bool(), enable_gqa=True),
            id="mask of ones",
        ),
    ],
)
def test_nothing_masked_becomes_sdpa_without_mask(function):
    backend = compile_with_passes(function, *grouped())
    assert backend.outcomes == [("exact", "sdpa_full")]
    assert backend.score_shaped() == []


def decode(q, k, v):
    return sdpa(q[:, :, :1], k, v, enable_gqa=True)


def decode_with_repeats(q, k, v):
    return sdpa(q[:, :, :1], repeat_kv(k), repeat_kv(v), attn_mask=torch.arange(LENGTH)[None] <= LENGTH - 1)


def decode_with_padding(q, k, v):
    valid = torch.arange(LENGTH) > q.sum()
    return sdpa(q[:, :, :1], repeat_kv(k), repeat_kv(v), attn_mask=valid[None])


@pytest.mark.parametrize(
    "function, outcome",
    [
        pytest.param(decode, ("kept", ""), id="nothing to gain"),
        pytest.param(decode_with_repeats, ("exact", "sdpa_full"), id="repeats"),
        pytest.param(decode_with_padding, ("kept", ""), id="padding"),
    ],
)
def test_decode(function, outcome):
    assert compile_with_passes(function, *grouped()).outcomes == [outcome]


def bidirectional_with_padding(q, k, v, padding):
    return sdpa(q, k, v, attn_mask=padding.bool()[:, None, None, :])


def test_bidirectional_attention_with_padding_is_kept():
    backend = compile_with_passes(bidirectional_with_padding, *full(), left_padding(), tolerance=0.0)
    assert backend.outcomes == [("kept", "")]
    assert backend.records[0].reason == "bidirectional attention with a mask"


def test_value_head_dim_may_differ():
    q, k, _ = full()
    backend = compile_with_passes(masked(allowed), q, k, torch.randn(BATCH, HEADS, LENGTH, 8))
    assert backend.outcomes == [("sampled", "sampled")]


def test_methods_differ_in_what_they_sample():
    chunked = compile_with_passes(masked(allowed), *grouped(), method="chunked", chunk_n=3)
    stride = compile_with_passes(masked(allowed), *grouped(), method="stride", r_row=0.25, r_w=0.5)
    chunk_n, sample_rows = (_arguments(chunked, "sample_scores")[i] for i in (5, 6))
    assert (chunk_n, sample_rows) == (3, 16)
    fewer = compile_with_passes(masked(allowed), *grouped(), method="chunked", sample_rows=5)
    assert tuple(_arguments(fewer, "sample_scores")[i] for i in (5, 6)) == (2, 5)
    chunk_n, sample_rows = (_arguments(stride, "sample_scores")[i] for i in (5, 6))
    assert (chunk_n, sample_rows) == (12, 1)
    alpha_s, window_slashes = _arguments(stride, "select_blocks")[9], _arguments(stride, "select_blocks")[11]
    assert (alpha_s, window_slashes) == (0.0, 3)  # ceil((24 - 1) / 16) + 1


def _arguments(backend, name):
    (node,) = (n for n in backend.after[-1].graph.nodes if name in str(n.target))
    return node.args


def test_layers_share_their_mask_blocks():
    def function(q, k, v):
        return masked(window)(masked(window)(q, k, v), k, v) + sdpa(
            q, k, v, attn_mask=window(), enable_gqa=True
        )

    def with_one_mask(q, k, v):
        mask = window()
        for _ in range(3):
            q = sdpa(q, k, v, attn_mask=mask, enable_gqa=True)
        return q

    assert compile_with_passes(with_one_mask, *grouped()).ops() == {
        "mask_blocks": 1,
        "block_sparse_attention": 3,
    }
    assert compile_with_passes(function, *grouped()).ops() == {"mask_blocks": 1, "block_sparse_attention": 3}


def test_both_masks_of_a_site_count():
    def function(q, k, v):
        return (torch.where(allowed(), q @ k.mT * SCALE, FLOAT_MIN) + added(FLOAT_MIN)).softmax(-1) @ v

    assert compile_with_passes(function, *full()).records[0].mask == "causal"


def decisions_on_cuda(function, *args, **options):
    """What would be decided for the same graph on a GPU."""
    decisions = []

    def backend(gm, example_inputs):
        config = SampleAttentionConfig(**{**SHORT, **options})
        for site in sdpa_calls.find(GraphScan(gm)):
            decisions.append(
                decide(site, MaskPredicate(causal=True), config, training=lambda: None, device="cuda")
            )
        return gm.forward

    with torch.no_grad():
        torch.compile(function, backend=backend)(*args)
    return decisions


@pytest.mark.parametrize(
    "tensors, form",
    [
        pytest.param(lambda: full(), "sdpa_causal", id="one key head for each query head"),
        pytest.param(lambda: grouped(torch.bfloat16), "sdpa_causal", id="grouped bf16"),
        pytest.param(lambda: grouped(), "", id="grouped fp32: SDPA would repeat the heads"),
    ],
)
def test_sdpa_is_chosen_where_it_has_a_fused_kernel(tensors, form):
    (decision,) = decisions_on_cuda(masked(allowed), *tensors())
    assert decision.form == form


@pytest.mark.parametrize("head_dim", [256, 512])
def test_grouped_heads_wider_than_flash_attention_do_not_become_sdpa(head_dim):
    tensors = [
        torch.randn(1, heads, LENGTH, head_dim, dtype=torch.bfloat16) for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    (decision,) = decisions_on_cuda(masked(allowed), *tensors)
    assert (decision.form == "sdpa_causal") == (head_dim == 256)


def test_nothing_is_sampled_where_the_op_has_no_fast_kernel(monkeypatch):
    long_enough = {"min_seq_len": 16}
    slow, fast = "pytorch", "cuda_sm90"
    decisions = {}
    for kernel in (slow, fast):
        monkeypatch.setattr(ops, "attention_kernel", lambda *arguments, kernel=kernel: kernel)
        (decisions[kernel],) = decisions_on_cuda(masked(allowed), *full(), **long_enough)
    assert decisions[fast].outcome == "sampled"
    assert decisions[slow].form == "sdpa_causal"
    assert "no fast kernel for torch.float32 and head_dim 16 on cuda" in decisions[slow].reason
