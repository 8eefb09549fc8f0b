"""Attention in one call: a row with the reason, and the graph as it was."""

import pytest
import torch
import torch.nn.functional as F
from support.graphs import compile_with_passes
from torch import nn

WIDTH, HEADS, TOKENS = 16, 2, 24


def embedded():
    return torch.randn(2, TOKENS, WIDTH)


def heads(tokens=TOKENS, dtype=torch.float32):
    return torch.randn(1, HEADS, tokens, WIDTH, dtype=dtype)


def reason(function, *args, **options):
    """The one row's reason; nothing was rewritten."""
    backend = compile_with_passes(function, *args, **options)
    (record,) = backend.records
    assert record.outcome == "kept" and not record.rewritten and record.q_len == "?"
    return record.reason


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention(need_weights, training):
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).train(training)

    def forward(x):
        return attention(x, x, x, need_weights=need_weights)[0]

    expected = "nn.MultiheadAttention: projections and attention are one call"
    assert reason(forward, embedded(), training=training) == expected


def test_encoder_layer_in_training_has_the_row_of_its_attention():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, dropout=0.0, batch_first=True)
    assert reason(layer, embedded(), training=True).startswith("nn.MultiheadAttention")


def test_encoder_layers_fast_path():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, batch_first=True).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(TOKENS)
    expected = "nn.TransformerEncoderLayer's fast path: the layer is one call"
    assert reason(lambda x: layer(x, src_mask=mask, is_causal=True), embedded()) == expected


def test_decoder_layer_has_two_rows():
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, batch_first=True).eval()
    backend = compile_with_passes(layer, embedded(), embedded())
    assert [record.module_path for record in backend.records] == ["self_attn", "multihead_attn"]
    assert {record.outcome for record in backend.records} == {"kept"}


def test_native_multi_head_attention():
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    weights = (attention.in_proj_weight, attention.in_proj_bias)
    out = (attention.out_proj.weight, attention.out_proj.bias)

    def forward(x):
        return torch._native_multi_head_attention(x, x, x, WIDTH, HEADS, *weights, *out)[0]

    assert reason(forward, embedded()).startswith("nn.MultiheadAttention")


@pytest.mark.parametrize(
    "kernel",
    [torch._scaled_dot_product_attention_math, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu],
)
def test_a_kernel_called_by_its_name(kernel):
    out = reason(lambda q: kernel(q, q, q)[0], heads())
    assert out.endswith("is one kernel of SDPA, called by its name")


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 0)], ids=["full", "causal", "window"])
@pytest.mark.parametrize("into", [False, True], ids=["returned", "written"])
def test_varlen_attention(window, into):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    if into and not hasattr(varlen, "varlen_attn_out"):
        pytest.skip("this torch has no varlen_attn_out")
    torch._dynamo.reset()
    ends = torch.tensor([0, 3, 8], dtype=torch.int32)
    seen = []

    def backend(gm, inputs):
        from sa_compile.config import SampleAttentionConfig
        from sa_compile.passes import pipeline

        code = gm.code
        seen.extend(pipeline.run(gm, SampleAttentionConfig(min_seq_len=2)))
        assert gm.code == code
        return lambda *args: (torch.zeros(8, HEADS, WIDTH),)  # no CPU kernel

    def forward(x):
        if into:
            return varlen.varlen_attn_out(torch.empty_like(x), x, x, x, ends, ends, 5, 5, window_size=window)
        return varlen.varlen_attn(x, x, x, ends, ends, 5, 5, window_size=window)

    with torch.no_grad():
        torch.compile(forward, backend=backend)(torch.randn(8, HEADS, WIDTH, dtype=torch.float16))
    (record,) = seen
    assert (record.outcome, record.reason) == ("kept", "varlen_attn: packed sequences, whose ends are data")


@torch.library.custom_op("mylib::flash_attention", mutates_args=())
def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Someone else's kernel."""
    return F.scaled_dot_product_attention(q, k, v)


flash_attention.register_fake(lambda q, k, v: torch.empty_like(q))


def test_a_custom_op():
    out = reason(lambda q: flash_attention(q, q, q), heads())
    assert out == "mylib::flash_attention is not torch's: what it computes is not in the graph"


def test_a_function_that_makes_a_mask_is_no_attention():
    @torch._dynamo.allow_in_graph
    def attention_mask(x):
        return x > 0

    backend = compile_with_passes(lambda x: attention_mask(x).float(), embedded())
    assert not backend.records
