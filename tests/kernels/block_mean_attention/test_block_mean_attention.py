"""block_mean_attention: kept blocks exactly, and every block that was dropped by its mean key and value."""

import pytest
import torch
import torch.nn.functional as F
from support.attention_inputs import EPSILON, NAN, Case, make_inputs
from support.implementations import reference

from sa_compile.kernels import ops
from sa_compile.kernels.block_sparse_attention.reference import dense_attention
from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared import eager as shared_eager
from sa_compile.kernels.shared import reference as shared_reference

BASE = Case(density=0.3)
CASES = [
    pytest.param(BASE, id="fp32"),
    pytest.param(BASE.but(dtype=torch.bfloat16), id="bf16"),
    pytest.param(BASE.but(dtype=torch.float16), id="fp16"),
    pytest.param(BASE.but(heads=6, kv_heads=6), id="mha"),
    pytest.param(BASE.but(batch=2, heads=6, kv_heads=2), id="gqa-3"),
    pytest.param(BASE.but(transposed=False), id="heads-first"),
    pytest.param(BASE.but(batch=3, shared_index=True), id="index-shared-by-batch-and-heads"),
    pytest.param(BASE.but(q_len=300, kv_len=300, block_q=128, block_k=128), id="length-300-block-128"),
    pytest.param(BASE.but(q_len=77, kv_len=77, block_k=16), id="odd-length"),
    pytest.param(BASE.but(q_len=1, kv_len=1), id="one-token"),
    pytest.param(BASE.but(q_len=1, kv_len=90, q_offset=89), id="one-query-row"),
    pytest.param(BASE.but(q_len=70, kv_len=200, q_offset=130), id="second-chunk"),
    pytest.param(BASE.but(q_len=70, kv_len=200, q_offset=125), id="offset-inside-a-block"),
    pytest.param(BASE.but(q_len=200, kv_len=70), id="rows-behind-a-ragged-last-block"),
    pytest.param(BASE.but(q_len=200, kv_len=70, q_offset=-130), id="rows-before-the-first-key"),
    pytest.param(BASE.but(batch=3, segments="left_padding"), id="left-padding"),
    pytest.param(BASE.but(batch=3, q_len=200, segments="right_padding"), id="right-padding"),
    pytest.param(BASE.but(batch=3, segments="left_padding", sinks=True), id="sinks"),
    pytest.param(BASE.but(head_dim=24, value_head_dim=40), id="dims-24-and-40"),
    pytest.param(BASE.but(head_dim=7, value_head_dim=3), id="dims-7-and-3"),
    pytest.param(BASE.but(block_q=128, block_k=16), id="block-128-16"),
    pytest.param(BASE.but(block_q=16, block_k=128, q_len=300, kv_len=300), id="block-16-128"),
    pytest.param(BASE.but(density=0.0), id="everything-dropped"),
    pytest.param(BASE.but(q_len=1200, kv_len=1200, block_q=64, block_k=16), id="more-blocks-than-a-word"),
]


def arguments(inputs, case, scale=None):
    scale = case.scale if scale is None else scale
    tensors = (inputs.query, inputs.key, inputs.value, inputs.block_mask, inputs.key_segment)
    return *tensors, inputs.sinks, scale, case.q_offset, case.block_q, case.block_k


def dense_error(inputs, case):
    """The largest error of dense causal SDPA in the case's dtype, where a row has keys."""
    rows = torch.arange(case.q_len)
    where = {"causal": True, "q_offset": case.q_offset, "key_segment": inputs.key_segment}
    mask = shared_reference.visible_entries(rows, case.kv_len, **where)[:, None]
    exact, lse = dense_attention(
        inputs.query, inputs.key.nan_to_num(), inputs.value.nan_to_num(), scale=case.scale, **where
    )
    dense = F.scaled_dot_product_attention(
        inputs.query,
        inputs.key.nan_to_num(),
        inputs.value.nan_to_num(),
        attn_mask=mask.expand(case.batch, -1, -1, -1),
        scale=case.scale,
        enable_gqa=True,
    )
    return (dense.double() - exact).masked_fill(lse[..., None] == -torch.inf, 0).abs().amax()


@pytest.mark.parametrize("case", CASES)
def test_equals_the_oracle(case):
    inputs = make_inputs(case)
    out, lse = ops.block_mean_attention_op(*arguments(inputs, case))
    exact, exact_lse = reference.block_mean_attention(*arguments(inputs, case))
    assert out.dtype == case.dtype and lse.dtype == torch.float32
    # Two roundings to the dtype: of the kept blocks' output, and of the sum.
    bound = 3 * dense_error(inputs, case) + 2 * EPSILON[case.dtype] * exact.abs().amax()
    assert (out.double() - exact).abs().amax() <= bound
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)
    assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)


def by_hand(inputs, case, scale):
    """One row of one head, key by key: out [Dv] and lse of the last row."""
    row = inputs.query[0, 0, -1].double() * scale
    bits = blocks.unpack_bits(inputs.block_mask, -(-case.kv_len // case.block_k))[0, 0, -1]
    keys, values = inputs.key[0, 0].double(), inputs.value[0, 0].double()
    scores, of = [], []
    for j in range(len(bits)):
        k, v = (x[j * case.block_k : (j + 1) * case.block_k] for x in (keys, values))
        last_row_of_block = (case.q_len - 1) // case.block_q * case.block_q
        if bits[j]:
            scores += [row @ key for key in k]
            of += list(v)
        elif (j + 1) * case.block_k - 1 <= last_row_of_block:
            spread = (k - k.mean(0)).square().mean()
            count = torch.tensor(float(len(k)), dtype=torch.float64)
            scores.append(row @ k.mean(0) + count.log() + min(0.5 * row @ row * spread, count.log()))
            of.append(v.mean(0))
    scores = torch.stack(scores)
    return torch.softmax(scores, 0) @ torch.stack(of), scores.logsumexp(0)


@pytest.mark.parametrize("scale", [0.2, 1.0, -0.3], ids=["flat", "gain-at-its-limit", "negative-scale"])
def test_a_row_is_what_the_definition_says(scale):
    case = BASE.but(heads=1, q_len=130, kv_len=130, block_k=16)
    inputs = make_inputs(case)
    inputs.block_mask[..., -1, 0] |= 1 << 8  # the block of the last rows
    out, lse = ops.block_mean_attention_op(*arguments(inputs, case, scale))
    expected, expected_lse = by_hand(inputs, case, scale)
    torch.testing.assert_close(out[0, 0, -1].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse[0, 0, -1].double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("segments", ["none", "left_padding"])
def test_everything_kept_is_block_sparse_attention_to_the_bit(segments, dtype):
    case = BASE.but(batch=2, density=2.0, segments=segments, dtype=dtype)
    inputs = make_inputs(case)
    found = ops.block_mean_attention_op(*arguments(inputs, case))
    for tensor, expected in zip(
        found, ops.block_sparse_attention_op(*inputs.attention_arguments(case)), strict=True
    ):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("segments", ["none", "left_padding"])
@pytest.mark.parametrize("density", [0.0, 0.4])
def test_blocks_of_equal_keys_give_dense_attention_whatever_is_dropped(density, segments):
    case = BASE.but(batch=2, heads=4, kv_heads=2, q_len=200, kv_len=200, density=density, segments=segments)
    inputs = make_inputs(case)
    of_block = torch.arange(200) // 32 * 32
    keys = make_inputs(case.but(segments="none")).key[:, :, of_block]
    inputs.key = keys.masked_fill(inputs.key.isnan(), NAN)
    cut = blocks.pack_bits(torch.eye(7, dtype=torch.bool))  # causality cuts the main diagonal: kept
    inputs.block_mask = inputs.block_mask | cut
    out, lse = ops.block_mean_attention_op(*arguments(inputs, case))
    where = {"scale": case.scale, "causal": True, "key_segment": inputs.key_segment}
    exact, exact_lse = dense_attention(
        inputs.query, inputs.key.nan_to_num(), inputs.value.nan_to_num(), **where
    )
    seen = exact_lse > -torch.inf
    torch.testing.assert_close(out[seen].double(), exact[seen], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


def test_keys_behind_a_row_change_nothing():
    case = BASE.but(q_len=200, kv_len=200)
    inputs = make_inputs(case)
    before, lse_before = ops.block_mean_attention_op(*arguments(inputs, case))
    inputs.key[:, :, 100:] += 3
    inputs.value[:, :, 100:] += 3
    after, lse_after = ops.block_mean_attention_op(*arguments(inputs, case))
    assert torch.equal(after[:, :, :100], before[:, :, :100])
    assert torch.equal(lse_after[:, :, :100], lse_before[:, :, :100])
    assert not torch.equal(after[:, :, 100:], before[:, :, 100:])


def test_a_dropped_block_that_causality_cuts_is_left_out():
    case = BASE.but(density=0.0, q_len=32, kv_len=32)
    out, lse = ops.block_mean_attention_op(*arguments(make_inputs(case), case))
    assert (out == 0).all() and (lse == -torch.inf).all()


def test_a_value_that_is_nan_reaches_only_the_rows_that_drop_its_block():
    """Rows 32 to 63 neither keep nor drop the key block of the same numbers: causality cuts it."""
    case = BASE.but(block_q=16, block_k=32, density=0.0)
    inputs = make_inputs(case)
    clean, _ = ops.block_mean_attention_op(*arguments(inputs, case))
    inputs.value[:, :, 40, 3] = NAN
    out, lse = ops.block_mean_attention_op(*arguments(inputs, case))
    assert out[:, :, 64:].isnan().any(-1).all()
    assert torch.equal(out[:, :, :64], clean[:, :, :64]) and lse.isfinite()[:, :, 32:].all()


def test_rows_in_chunks_equal_all_rows_at_once(monkeypatch):
    case = BASE.but(batch=2, q_len=300, kv_len=300, segments="left_padding")
    inputs = make_inputs(case)
    whole = ops.block_mean_attention_op(*arguments(inputs, case))
    monkeypatch.setattr(shared_eager, "SCORE_BYTES", 1)
    for part, full in zip(ops.block_mean_attention_op(*arguments(inputs, case)), whole, strict=True):
        torch.testing.assert_close(part, full)


def test_output_is_laid_out_as_the_model_reads_it():
    case = BASE.but(batch=2, q_len=50, kv_len=50, value_head_dim=16)
    out, lse = ops.block_mean_attention_op(*arguments(make_inputs(case), case))
    assert out.transpose(1, 2).is_contiguous() and lse.is_contiguous()


@pytest.mark.parametrize("scale", [0.0, -0.2])
def test_a_scale_of_zero_or_less_is_one_like_any_other(scale):
    case = BASE
    inputs = make_inputs(case)
    found = ops.block_mean_attention_op(*arguments(inputs, case, scale))
    for tensor, exact in zip(
        found, reference.block_mean_attention(*arguments(inputs, case, scale)), strict=True
    ):
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-4, atol=1e-5)


def test_large_scores_do_not_overflow():
    case = BASE
    inputs = make_inputs(case)
    inputs.query *= 1e4
    out, lse = ops.block_mean_attention_op(*arguments(inputs, case))
    exact, exact_lse = reference.block_mean_attention(*arguments(inputs, case))
    assert out.isfinite().all()
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


def test_empty_inputs_give_empty_outputs():
    query, key = torch.zeros(1, 2, 0, 16), torch.zeros(1, 2, 0, 16)
    out, lse = ops.block_mean_attention(query, key, key, torch.zeros(1, 1, 0, 2, dtype=torch.int32))
    assert out.shape == (1, 2, 0, 16) and lse.shape == (1, 2, 0)
    query, mask = torch.zeros(1, 2, 5, 16), torch.zeros(1, 1, 1, 2, dtype=torch.int32)
    out, lse = ops.block_mean_attention(query, key, key, mask)
    assert (out == 0).all() and (lse == -torch.inf).all()


def test_backward_is_refused():
    case = BASE
    inputs = make_inputs(case)
    inputs.query.requires_grad_()
    out, _ = ops.block_mean_attention_op(*arguments(inputs, case))
    with pytest.raises(NotImplementedError, match="block_mean_attention has no backward"):
        out.sum().backward()
