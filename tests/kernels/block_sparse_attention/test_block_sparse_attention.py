"""block_sparse_attention: exact attention over the visible entries of the kept blocks."""

import pytest
import torch
import torch.nn.functional as F
from support.attention_inputs import NAN, Case, assert_as_good_as_sdpa, make_inputs
from support.implementations import eager

from sa_compile.kernels import ops
from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared import eager as shared_eager

BASE = Case()
CASES = [
    pytest.param(BASE, id="fp32"),
    pytest.param(BASE.but(dtype=torch.bfloat16), id="bf16"),
    pytest.param(BASE.but(dtype=torch.float16), id="fp16"),
    pytest.param(BASE.but(heads=6, kv_heads=6), id="mha"),
    pytest.param(BASE.but(heads=6, kv_heads=2), id="gqa-3"),
    pytest.param(BASE.but(transposed=False), id="heads-first"),
    pytest.param(BASE.but(batch=3, shared_index=True), id="index-shared-by-batch-and-heads"),
    pytest.param(BASE.but(q_len=300, kv_len=300, block_q=128, block_k=128), id="length-300-block-128"),
    pytest.param(BASE.but(q_len=77, kv_len=77), id="odd-length"),
    pytest.param(BASE.but(q_len=1, kv_len=1), id="one-token"),
    pytest.param(BASE.but(q_len=1, kv_len=90, q_offset=89), id="one-query-row"),
    pytest.param(BASE.but(q_len=70, kv_len=200, q_offset=130), id="second-chunk"),
    pytest.param(BASE.but(q_len=200, kv_len=70), id="more-queries-than-keys"),
    pytest.param(BASE.but(q_len=200, kv_len=70, q_offset=-130), id="rows-before-the-first-key"),
    pytest.param(BASE.but(causal=False), id="not-causal"),
    pytest.param(BASE.but(window=40), id="window"),
    pytest.param(BASE.but(window=1), id="window-of-one"),
    pytest.param(BASE.but(causal=False, window=40), id="window-without-causality"),
    pytest.param(BASE.but(batch=3, segments="left_padding"), id="left-padding"),
    pytest.param(BASE.but(batch=3, segments="right_padding"), id="right-padding"),
    pytest.param(BASE.but(segments="packed"), id="packed"),
    pytest.param(BASE.but(sinks=True, heads=4, batch=2), id="sinks"),
    pytest.param(BASE.but(sinks=True, segments="left_padding", window=40), id="sinks-padding-window"),
    pytest.param(BASE.but(segments="packed", window=50, q_len=100, q_offset=60), id="packed-window-offset"),
    pytest.param(BASE.but(head_dim=24, value_head_dim=40), id="dims-24-and-40"),
    pytest.param(BASE.but(head_dim=7, value_head_dim=3), id="dims-7-and-3"),
    pytest.param(BASE.but(head_dim=128, value_head_dim=192), id="dims-128-and-192"),
    pytest.param(BASE.but(block_q=16, block_k=16), id="block-16"),
    pytest.param(BASE.but(block_q=128, block_k=64), id="block-128-64"),
    pytest.param(BASE.but(block_q=16, block_k=128), id="block-16-128"),
    pytest.param(BASE.but(density=0.0), id="nothing-kept"),
    pytest.param(BASE.but(q_len=1200, kv_len=1200, block_q=16, block_k=16), id="more-blocks-than-a-word"),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "op",
    [
        pytest.param(ops.block_sparse_attention_op, id="op"),
        pytest.param(eager.block_sparse_attention, id="eager"),
    ],
)
def test_equals_the_oracle(op, case):
    inputs = make_inputs(case)
    out, lse = op(*inputs.attention_arguments(case))
    assert out.dtype == case.dtype and lse.dtype == torch.float32
    assert_as_good_as_sdpa(out, lse, case, inputs)


@pytest.mark.parametrize("segments", ["none", "left_padding"])
def test_everything_kept_equals_dense_causal_attention(segments):
    case = BASE.but(batch=2, q_len=333, kv_len=333, segments=segments, density=2.0)
    inputs = make_inputs(case)
    out, lse = ops.block_sparse_attention_op(*inputs.attention_arguments(case))
    assert_as_good_as_sdpa(out, lse, case, inputs)
    if segments == "none":
        dense = F.scaled_dot_product_attention(
            inputs.query, inputs.key, inputs.value, is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(out, dense)


def test_eager_in_chunks_of_rows_equals_all_rows_at_once(monkeypatch):
    case = BASE.but(q_len=300, kv_len=300)
    inputs = make_inputs(case)
    whole = eager.block_sparse_attention(*inputs.attention_arguments(case))
    monkeypatch.setattr(shared_eager, "SCORE_BYTES", 1)
    for part, full in zip(
        eager.block_sparse_attention(*inputs.attention_arguments(case)), whole, strict=True
    ):
        torch.testing.assert_close(part, full)


@pytest.mark.parametrize(
    "op",
    [
        pytest.param(ops.block_sparse_attention_op, id="op"),
        pytest.param(eager.block_sparse_attention, id="eager"),
    ],
)
@pytest.mark.parametrize("poison", [NAN, float("inf"), float("-inf")])
def test_values_that_are_not_finite_reach_only_the_rows_that_see_them(op, poison):
    case = BASE.but(q_len=64, kv_len=64, density=2.0, window=20)
    inputs = make_inputs(case)
    clean, _ = op(*inputs.attention_arguments(case))
    inputs.value[:, :, 30] = poison
    inputs.key[:, :, 50] = NAN
    out, _ = op(*inputs.attention_arguments(case))
    sees_value = slice(30, 50)  # rows 30 .. 49 have key 30 in their window
    untouched = [row for row in range(64) if not 30 <= row < 50 and not 50 <= row < 64]
    torch.testing.assert_close(out[:, :, untouched], clean[:, :, untouched])
    assert not out[:, :, sees_value].isfinite().any()
    assert out[:, :, 50:].isnan().all()


def test_output_is_laid_out_as_the_model_reads_it():
    case = BASE.but(batch=2, q_len=50, kv_len=50, value_head_dim=16)
    out, lse = ops.block_sparse_attention_op(*make_inputs(case).attention_arguments(case))
    assert out.transpose(1, 2).is_contiguous() and lse.is_contiguous()


def test_large_scores_do_not_overflow():
    case = BASE
    inputs = make_inputs(case)
    inputs.query *= 1e4
    out, lse = ops.block_sparse_attention_op(*inputs.attention_arguments(case))
    assert out.isfinite().all()
    assert_as_good_as_sdpa(out, lse, case, inputs)


def test_strides_with_a_gap_are_taken_as_they_are():
    case = BASE
    inputs = make_inputs(case)
    expected = ops.block_sparse_attention_op(*inputs.attention_arguments(case))
    inputs.key = torch.cat([inputs.key, inputs.key], -1)[..., : case.head_dim]
    inputs.value = inputs.value.transpose(-1, -2).contiguous().transpose(-1, -2)
    for out, wanted in zip(
        ops.block_sparse_attention_op(*inputs.attention_arguments(case)), expected, strict=True
    ):
        torch.testing.assert_close(out, wanted, rtol=0, atol=0)


def test_empty_inputs_give_empty_outputs():
    query, key = torch.zeros(1, 2, 0, 16), torch.zeros(1, 2, 0, 16)
    out, lse = ops.block_sparse_attention(query, key, key, torch.zeros(1, 1, 0, 2, dtype=torch.int32))
    assert out.shape == (1, 2, 0, 16) and lse.shape == (1, 2, 0)


def test_backward_is_refused():
    case = BASE
    inputs = make_inputs(case)
    inputs.query.requires_grad_()
    out, _ = ops.block_sparse_attention_op(*inputs.attention_arguments(case))
    with pytest.raises(NotImplementedError, match="no backward"):
        out.sum().backward()


def test_index_of_flex_attention_gives_its_result():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    def document(b, h, q, k):
        return (q >= k) & (q // 70 == k // 70)

    mask = flex.create_block_mask(document, None, None, 256, 256, device="cpu", BLOCK_SIZE=64)
    case = BASE.but(q_len=256, kv_len=256, kv_heads=2, block_q=64, block_k=64, transposed=False)
    inputs = make_inputs(case)
    inputs.block_mask = blocks.bits_from_block_mask(mask)
    inputs.query_segment = inputs.key_segment = (torch.arange(256) // 70).int()[None]
    out, _ = ops.block_sparse_attention_op(*inputs.attention_arguments(case))
    expected = flex.flex_attention(inputs.query, inputs.key, inputs.value, block_mask=mask, scale=case.scale)
    torch.testing.assert_close(out, expected)
