"""A few rows behind a filled cache: on a CPU nothing becomes dearer (measured by ``bench exact-forms``)."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import repeat_kv
from support.graphs import PassesBackend, compile_with_passes

OPTIONS = {"min_seq_len": 4096}
UNCHANGED, SPARSE = ("exact", "unchanged"), ("exact", "block_sparse")


def operands(rows, kv_heads, dtype=torch.float32, keys=200):
    torch.manual_seed(0)
    sizes = ((4, rows), (kv_heads, keys), (kv_heads, keys))
    return [torch.randn(1, heads, length, 16, dtype=dtype) for heads, length in sizes]


def allowed(q, k):
    return torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + (k.shape[2] - q.shape[2])


def native(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, allowed(q, k), enable_gqa=True)


def repeated(q, k, v):
    return F.scaled_dot_product_attention(q, repeat_kv(k), repeat_kv(v), allowed(q, k))


def windowed(q, k, v):
    mask = allowed(q, k) & (torch.arange(k.shape[2]) > torch.arange(q.shape[2])[:, None] + 100)
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


def written_out(q, k, v):
    scores = q @ k.transpose(2, 3) / 4 + torch.zeros(()).masked_fill(~allowed(q, k), -torch.inf).to(q.dtype)
    return scores.softmax(-1) @ v


def written_out_repeated(q, k, v):
    return written_out(q, repeat_kv(k), repeat_kv(v))


@pytest.mark.parametrize(
    ("attention", "rows", "kv_heads", "dtype", "outcome"),
    [
        pytest.param(native, 47, 4, torch.float32, UNCHANGED, id="native-heads-few"),
        pytest.param(native, 48, 4, torch.float32, SPARSE, id="native-heads"),
        pytest.param(native, 15, 2, torch.float32, UNCHANGED, id="grouped-heads-few"),
        pytest.param(native, 16, 2, torch.float32, SPARSE, id="grouped-heads"),
        pytest.param(native, 7, 2, torch.bfloat16, UNCHANGED, id="bf16-grouped-heads-few"),
        pytest.param(native, 8, 2, torch.bfloat16, SPARSE, id="bf16-grouped-heads"),
        pytest.param(repeated, 2, 2, torch.float32, SPARSE, id="repeats-pay-at-once"),
        pytest.param(windowed, 2, 4, torch.float32, SPARSE, id="a-window-skips-keys"),
        pytest.param(written_out, 47, 4, torch.float32, UNCHANGED, id="written-out-few"),
        pytest.param(written_out, 2, 4, torch.bfloat16, SPARSE, id="written-out-bf16"),
        pytest.param(written_out_repeated, 15, 2, torch.bfloat16, UNCHANGED, id="written-out-bf16-repeats"),
    ],
)
def test_the_cheaper_form_is_chosen(attention, rows, kv_heads, dtype, outcome):
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    backend = compile_with_passes(attention, *operands(rows, kv_heads, dtype), tolerance=tolerance, **OPTIONS)
    assert backend.outcomes == [outcome]


def test_one_boundary_of_dynamic_lengths():
    backend = PassesBackend(OPTIONS)
    compiled = torch.compile(native, backend=backend, dynamic=True)
    with torch.no_grad():
        for rows in (2, 47, 100, 48, 30):
            compiled(*operands(rows, 4))
    assert backend.outcomes == [UNCHANGED, SPARSE]


@pytest.mark.parametrize(
    ("attention", "dtype", "outcome"),
    [
        pytest.param(repeated, torch.float32, ("exact", "sdpa_full"), id="sdpa"),
        pytest.param(repeated, torch.bfloat16, ("kept", ""), id="sdpa-bf16-repeats"),
        pytest.param(native, torch.bfloat16, ("exact", "sdpa_full"), id="sdpa-bf16"),
        pytest.param(written_out_repeated, torch.float32, ("kept", ""), id="written-out"),
    ],
)
def test_a_decode_step_stays_where_sdpa_would_be_dearer(attention, dtype, outcome):
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    backend = compile_with_passes(attention, *operands(1, 2, dtype), tolerance=tolerance, **OPTIONS)
    assert backend.outcomes == [outcome]
