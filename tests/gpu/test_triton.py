"""The Triton kernels against the oracle and the PyTorch implementation, on a GPU or under the interpreter."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import GRID
from support import query_stride
from support.budget_oracle import assert_rest_equals_the_oracle
from support.implementations import eager, reference, triton
from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.select_adaptive import reference as adaptive_reference
from sa_compile.kernels.shared import blocks

# The interpreter multiplies bfloat16 wrongly, so lengths are small and dtypes are those that it knows.
ATTENTION = [
    "square",
    "ragged_bshd",
    "unaligned_offset",
    "negative_offset",
    "window",
    "left_padding",
    "packed_sparse_batch",
    "sinks",
    "one_sink_padded",
]
SAMPLES = {
    "one_chunk": {"q_len": 100, "kv_len": 260, "q_offset": 100, "chunk_n": 1, "sample_rows": 16},
    "two_chunks": {"q_len": 300, "kv_len": 300, "q_offset": 0, "chunk_n": 2, "sample_rows": 32},
    "chunks_shorter_than_samples": {
        "q_len": 90,
        "kv_len": 90,
        "q_offset": 0,
        "chunk_n": 4,
        "sample_rows": 32,
    },
    "stride": {"q_len": 100, "kv_len": 170, "q_offset": 70, "chunk_n": 25, "sample_rows": 1},
    "negative_offset": {"q_len": 90, "kv_len": 60, "q_offset": -20, "chunk_n": 2, "sample_rows": 64},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", ATTENTION)
def test_block_sparse_attention(name: str, dtype: torch.dtype, triton_device: str) -> None:
    case = GRID[name].with_(
        dtype=dtype, head_dim=48, value_head_dim=32, block_q=32, block_k=64, heads=2, kv_heads=1
    )
    error, dense_error, lse_error = attention_cases.check(
        triton.block_sparse_attention, case, triton_device, seed=3
    )
    assert error <= 1.5 * dense_error + 1e-6
    assert lse_error <= 1e-3


@pytest.mark.parametrize("name", ["ragged_bshd", "window", "left_padding", "sinks"])
def test_block_sparse_attention_at_head_dim_512(name: str, triton_device: str) -> None:
    wide = {"head_dim": 512, "value_head_dim": 512, "heads": 2, "kv_heads": 1}
    case = GRID[name].with_(**wide, q_len=200, kv_len=200, dtype=torch.float16, block_q=64, block_k=64)
    error, dense_error, lse_error = attention_cases.check(
        triton.block_sparse_attention, case, triton_device, seed=4
    )
    assert error <= 1.5 * dense_error + 1e-6
    assert lse_error <= 1e-3


@pytest.mark.parametrize("scratch", [1, 2048], ids=["a_query_block_a_group", "two_groups"])
def test_block_sparse_attention_in_groups(scratch: int, triton_device: str, monkeypatch) -> None:
    from sa_compile.kernels.block_sparse_attention import triton as attention

    monkeypatch.setattr(attention, "SCRATCH_BYTES", scratch)
    case = GRID["unaligned_offset"].with_(dtype=torch.float16, block_q=32, block_k=32, heads=2, kv_heads=1)
    error, dense_error, lse_error = attention_cases.check(
        triton.block_sparse_attention, case, triton_device, seed=5
    )
    assert error <= 1.5 * dense_error + 1e-6
    assert lse_error <= 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("causal", [True, False])
def test_scores_that_no_masked_tile_tells_of(causal: bool, dtype: torch.dtype, triton_device: str) -> None:
    """Those of a block without a mask, so high that exponentials relative to the others' highest overflow."""
    case = attention_cases.Case(
        dtype=dtype, q_len=128, kv_len=128, head_dim=32, value_head_dim=32, heads=2, kv_heads=1,
        causal=causal, block_q=32, block_k=32, density=1.0,
    )  # fmt: skip
    given = attention_cases.random_inputs(case, triton_device, seed=1)
    given.key[:, :, 32:64] *= 300
    found, exact = triton.block_sparse_attention(*given.arguments(case)), attention_cases.oracle(given, case)
    for own, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(own.double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    "device, dims, tile",
    [
        ("H200", (64, 64), (128, 64, 4)),
        ("H200", (128, 128), (128, 64, 3)),
        ("H200", (256, 128), (128, 64, 3)),
        ("H200", (256, 256), (128, 64, 2)),
        ("H200", (512, 512), (64, 32, 2)),
        ("A100", (64, 64), (128, 64, 4)),
        ("A100", (128, 128), (128, 64, 3)),
        ("A100", (256, 256), (64, 64, 2)),
        ("RTX 4090", (64, 64), (128, 64, 2)),
        ("RTX 4090", (128, 128), (128, 64, 2)),
        ("RTX 4090", (256, 256), (64, 32, 2)),
        ("T4", (64, 64), (64, 32, 2)),
        ("T4", (128, 128), (64, 32, 2)),
        ("T4", (512, 512), (16, 16, 2)),
    ],
)
def test_a_tile_of_the_attention_fits_the_device(
    device: str, dims: tuple[int, int], tile: tuple[int, int, int]
) -> None:
    pytest.importorskip("triton")
    from sa_compile.kernels.block_sparse_attention.triton import tile_that_fits

    kib = {"H200": 227, "A100": 163, "RTX 4090": 99, "T4": 64}[device]
    assert tile_that_fits(2, *dims, kib * 1024) == tile


def padding_of(side: str, kv_len: int, device: str) -> Tensor | None:
    """Of two prompts, 17 and 40 keys on one side; or all that the second prompt's rows have, and more."""
    counts = {"none": None, "left": (17, 40), "right": (17, 40), "all_of_one": (5, kv_len)}[side]
    if counts is None:
        return None
    place, count = torch.arange(kv_len, device=device), torch.tensor(counts, device=device)[:, None]
    return torch.where(place < count if side == "left" else place >= kv_len - count, -1, 0).int()


PADDING = ["none", "left", "right", "all_of_one"]


@pytest.mark.parametrize("side", PADDING)
@pytest.mark.parametrize("name", SAMPLES)
def test_sample_scores_and_select_blocks(name: str, side: str, triton_device: str) -> None:
    sizes = SAMPLES[name]
    q_len, kv_len, q_offset = sizes["q_len"], sizes["kv_len"], sizes["q_offset"]
    torch.manual_seed(0)
    query = torch.randn(2, 2, q_len, 32, device=triton_device)
    key = torch.randn(2, 1, kv_len, 32, device=triton_device)
    key_segment = padding_of(side, kv_len, triton_device)
    sample = (0.2, q_offset, sizes["chunk_n"], sizes["sample_rows"], 16)
    scores = triton.sample_scores(query, key, key_segment, *sample)
    for found, expected in zip(
        scores, reference.sample_scores(query, key, key_segment, *sample), strict=True
    ):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)

    for alphas in ((0.9, 0.9), (0.5, 0.2), (1.0, 0.3), (0.0, 0.0)):
        for block_q, keep_sink, window, last_rows in ((16, True, 2, 0), (64, False, 0, 0), (16, True, 2, 20)):
            rest = (q_len, kv_len, q_offset, block_q, 16, *alphas, keep_sink, window, last_rows)
            found = triton.select_blocks(*scores, key_segment, *rest)
            assert torch.equal(found, eager.select_blocks(*scores, key_segment, *rest))


ADAPTIVE = {
    "whole_blocks": {"q_len": 128, "kv_len": 128, "q_offset": 0, "block_q": 32, "block_k": 16},
    "ragged": {"q_len": 101, "kv_len": 101, "q_offset": 0, "block_q": 32, "block_k": 32},
    "second_chunk_of_two_words": {"q_len": 50, "kv_len": 650, "q_offset": 597, "block_q": 64, "block_k": 16},
    "negative_offset": {"q_len": 90, "kv_len": 60, "q_offset": -20, "block_q": 16, "block_k": 16},
    "positions_past_the_keys": {"q_len": 120, "kv_len": 64, "q_offset": 0, "block_q": 32, "block_k": 16},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("side", PADDING)
@pytest.mark.parametrize("name, dim", [*((name, 24) for name in ADAPTIVE), ("ragged", 512)])
def test_block_representatives_and_select_adaptive(
    name: str, dim: int, side: str, dtype: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sa_compile.kernels.select_adaptive import triton as adaptive
    from sa_compile.kernels.select_adaptive.op import Arguments

    q_len, kv_len, q_offset, block_q, block_k = ADAPTIVE[name].values()
    torch.manual_seed(0)
    query = (2 * torch.randn(2, 2, q_len, dim, device=triton_device)).to(dtype)
    key = torch.randn(2, 1, kv_len, dim, device=triton_device).to(dtype)
    key_segment = padding_of(side, kv_len, triton_device)
    if key_segment is not None:
        key = key.masked_fill((key_segment < 0)[:, None, :, None], float("nan"))
    found = triton.block_representatives(key, key_segment, block_k, 5)
    expected = reference.block_representatives(key, key_segment, block_k, 5)
    assert torch.equal(found[0][:, :, 1:].double(), expected[0][:, :, 1:])
    rounding = 2.0**-11 if dtype == torch.float16 else 1e-6
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1.01 * rounding, atol=1e-6)
    for terms, exact in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(terms.double(), exact, rtol=1e-4, atol=1e-5)

    monkeypatch.setattr(adaptive, "SCRATCH_BYTES", 4 * 2 * 2 * block_q * 45 * 2)  # some query blocks a group
    where = (key_segment, 0.2, q_offset, block_q, block_k)
    for keep_sink, window, last_rows in ((True, 2, 0), (False, 1, 0), (True, 2, 20)):
        given = Arguments(query, key, *found, *where, 0.0, keep_sink, window, last_rows)
        squares, *_ = adaptive_reference.squared_shares(given, adaptive_reference.byte_product)
        for tau in (0.0, 0.1, 0.4):
            given = given._replace(tau=tau)
            bits = adaptive.select_adaptive(given)
            kept = blocks.unpack_bits(bits, -(-kv_len // block_k))
            near_tau = (squares - tau**2).abs() <= 4e-3 * tau**2  # squares wait as bfloat16
            exact = adaptive_reference.select_adaptive(given, adaptive_reference.byte_product)
            assert torch.equal(kept | near_tau, exact | near_tau)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("name, dim", [*((name, 24) for name in ADAPTIVE), ("ragged", 512)])
def test_select_budget(
    name: str, dim: int, padded: bool, dtype: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sa_compile.kernels.select_budget import reference as budget_reference
    from sa_compile.kernels.select_budget import triton as budget_triton
    from sa_compile.kernels.select_budget.op import Arguments

    q_len, kv_len, q_offset, block_q, block_k = ADAPTIVE[name].values()
    torch.manual_seed(0)
    query = torch.randn(2, 2, q_len, dim, device=triton_device).to(dtype)
    key = torch.randn(2, 1, kv_len, dim, device=triton_device).to(dtype)
    key_segment = None
    if padded:
        begin = torch.tensor([[17], [40]], device=triton_device)
        key_segment = torch.where(torch.arange(kv_len, device=triton_device) < begin, -1, 0).int()
        key = key.masked_fill((key_segment < 0)[:, None, :, None], float("nan"))
    monkeypatch.setattr(budget_triton, "SCRATCH_BYTES", 4 * 2 * 2 * 128 * 45)  # some query blocks a batch
    where = (query, key, key_segment, 0.2, q_offset, block_q, block_k)
    for rows, keep_sink, window in ((8, True, 2), (16, False, 1)):
        given = Arguments(*where, 0.0, 0.0, rows, keep_sink, window)
        grown, squares, _, _ = budget_reference.growths(given)
        for budget, tau in ((0.0, 9.0), (0.03, 9.0), (0.2, 9.0), (9.0, 0.3), (0.03, 0.3)):
            bounded = given._replace(budget=budget, tau=tau)
            kept = blocks.unpack_bits(budget_triton.select_budget(bounded), -(-kv_len // block_k))
            exact = budget_reference.select_budget(bounded)
            near = (grown - budget**2).abs() <= 2e-3 * budget**2
            near |= (squares - tau**2).abs() <= 2e-3 * tau**2
            assert torch.equal(kept | near, exact | near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_select_budget_rest(
    name: str, padded: bool, dtype: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sa_compile.kernels.select_budget import triton as budget_triton
    from sa_compile.kernels.select_budget_rest import triton as rest_triton
    from sa_compile.kernels.select_budget_rest.op import Arguments

    q_len, kv_len, q_offset, block_q, block_k = ADAPTIVE[name].values()
    torch.manual_seed(0)
    query = torch.randn(2, 2, q_len, 24, device=triton_device).to(dtype)
    key, value = (torch.randn(2, 1, kv_len, dim, device=triton_device).to(dtype) for dim in (24, 80))
    value[:, :, kv_len // 2, 7] = torch.inf
    key_segment = None
    if padded:
        begin = torch.tensor([[17], [40]], device=triton_device)
        key_segment = torch.where(torch.arange(kv_len, device=triton_device) < begin, -1, 0).int()
        padding = (key_segment < 0)[:, None, :, None]
        key, value = (x.masked_fill(padding, float("nan")) for x in (key, value))
    monkeypatch.setattr(budget_triton, "SCRATCH_BYTES", 4 * 2 * 2 * 128 * 45)  # some query blocks a batch
    shape = (-(-q_len // block_q), -(-kv_len // block_k))
    for heads, budget, sink in (((1, 1), 0.3, True), ((2, 2), 0.3, True), ((2, 1), 9.0, False)):
        kept = torch.rand(*heads, *shape, device=triton_device) < 0.1
        where = (blocks.pack_bits(kept), key_segment, 0.2, q_offset, block_q, block_k)
        given = Arguments(query, key, value, *where, budget, 9.0, 8, sink, 1)
        found = rest_triton.select_budget_rest(given)
        assert_rest_equals_the_oracle(found, given, near=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    "dim, shared, expected",
    [(128, 232448, (64, 3)), (256, 166912, (64, 3)), (256, 101376, (32, 2)), (512, 232448, (32, 2))],
    ids=["H200", "A100-wide", "smaller-wide", "H200-512"],
)
def test_the_tile_of_a_selection_fits_into_shared_memory(
    dim: int, shared: int, expected: tuple[int, int]
) -> None:
    pytest.importorskip("triton")
    from sa_compile.kernels.select_adaptive import triton as adaptive_triton

    assert adaptive_triton.tile_that_fits(dim, 128, shared) == expected


@pytest.mark.parametrize(
    "dim, shared, expected",
    [
        (128, 232448, (128, 8, 2)),
        (256, 232448, (128, 8, 2)),
        (256, 166912, (64, 4, 2)),
        (256, 101376, (64, 4, 1)),
    ],
    ids=["H200", "H200-wide", "A100-wide", "smaller"],
)
def test_the_tile_of_sampled_rows_fits_into_shared_memory(
    dim: int, shared: int, expected: tuple[int, int, int]
) -> None:
    pytest.importorskip("triton")
    from sa_compile.kernels.select_budget import triton as budget_triton

    assert budget_triton.tile_that_fits(dim, 128, shared) == expected


MEANS = {
    "whole_blocks": {},
    "ragged": {"q_len": 101, "kv_len": 101},
    "second_chunk_of_two_words": {"q_len": 50, "kv_len": 650, "q_offset": 597, "block_k": 16},
    "negative_offset": {"q_len": 90, "kv_len": 60, "q_offset": -20, "block_q": 16, "block_k": 16},
    "positions_past_the_keys": {"q_len": 150, "kv_len": 70},
    "blocks_wider_than_query_blocks": {"block_q": 16, "block_k": 64, "q_len": 200, "kv_len": 200},
    "everything_dropped": {"density": 0.0},
    "everything_kept": {"density": 1.0},
    "shared_mask": {"batch": 2, "shared_mask": True, "heads": 4, "kv_heads": 2},
    "left_padding": {"segments": "left_padding", "batch": 2, "q_len": 200, "kv_len": 200},
    "sinks": {"sinks": "a_head", "segments": "left_padding", "batch": 2},
    "right_padding": {"segments": "right_padding", "batch": 2, "q_len": 200, "kv_len": 200, "layout": "bshd"},
}


def mean_attention(
    op: Callable, inputs: attention_cases.Inputs, case: attention_cases.Case
) -> tuple[Tensor, Tensor]:
    """What an implementation of block_mean_attention gives for a case."""
    tensors = (inputs.query, inputs.key, inputs.value, inputs.block_mask, inputs.key_segment)
    return op(*tensors, inputs.sinks, case.head_dim**-0.5, case.q_offset, case.block_q, case.block_k)


def with_triton_means(
    query: Tensor, key: Tensor, value: Tensor, block_mask: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """block_mean_attention: PyTorch's attention over kept blocks, and the Triton kernels' means."""
    from sa_compile.kernels.block_mean_attention import triton as means
    from sa_compile.kernels.block_mean_attention.op import Arguments

    given = Arguments(query, key, value, block_mask, *rest)
    out, lse = eager.block_sparse_attention(*given.of_kept_blocks)
    means.add_block_means_(given, out, lse)
    return out, lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", MEANS)
def test_block_means(name: str, dtype: torch.dtype, triton_device: str) -> None:
    sizes = {"head_dim": 48, "value_head_dim": 24, "block_q": 32, "block_k": 32, "heads": 2, "kv_heads": 1}
    lengths = {"q_len": 160, "kv_len": 160, "density": 0.4}
    case = attention_cases.BASE.with_(**{**sizes, **lengths, **MEANS[name], "dtype": dtype})
    inputs = attention_cases.random_inputs(case, triton_device, seed=5)
    out, lse = mean_attention(with_triton_means, inputs, case)
    exact, exact_lse = mean_attention(reference.block_mean_attention, inputs, case)
    eager_out, _ = mean_attention(ops.block_mean_attention_op, inputs, case)
    eager_error = attention_cases.relative_error(eager_out, exact)
    # Means and weights are rounded to the inputs' dtype, which PyTorch's are not.
    assert attention_cases.relative_error(out, exact) <= 3 * eager_error + 1e-6
    assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-3, rtol=1e-4)


RESTS = {
    "plain": {},
    "ragged": {"q_len": 101, "kv_len": 101, "layout": "bshd"},
    "tiles_of_a_block": {"block_q": 128, "q_len": 200, "kv_len": 200},
    "negative_offset": {"q_len": 90, "kv_len": 60, "q_offset": -20, "block_q": 16, "block_k": 16},
    "nothing_kept": {"density": 0.0},
    "left_padding": {"segments": "left_padding", "batch": 2, "q_len": 200, "kv_len": 200},
    "sinks": {"sinks": "a_head", "segments": "left_padding", "batch": 2, "q_len": 200, "kv_len": 200},
    "one_sink": {"sinks": "one", "heads": 4, "kv_heads": 2},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("part", [0.5, 1.0])
@pytest.mark.parametrize("name", RESTS)
def test_block_rest_attention(name: str, part: float, dtype: torch.dtype, triton_device: str) -> None:
    from sa_compile.kernels.block_rest_attention import triton as rest
    from sa_compile.kernels.block_rest_attention.op import Arguments

    sizes = {"head_dim": 48, "value_head_dim": 24, "block_q": 32, "block_k": 32, "heads": 2, "kv_heads": 1}
    case = attention_cases.BASE.with_(**{**sizes, "q_len": 160, "kv_len": 160, **RESTS[name], "dtype": dtype})
    x = attention_cases.random_inputs(case, triton_device, seed=6)
    torch.manual_seed(0)
    shape = (case.batch, case.heads, -(-case.q_len // case.block_q))
    share = 0.8 * torch.rand(shape, device=triton_device)
    value = share[..., None] * torch.randn(*shape, case.value_head_dim, device=triton_device)
    level = 2 + torch.randn(shape, device=triton_device)
    share[0, 0, 0], value[0, 0, 0], level[0, 0, 0] = 0, 0, -torch.inf
    level[0, 0, -1] = 200.0  # no more than the kept keys' own
    tensors = (x.query, x.key, x.value, x.block_mask, value, share, level, x.key_segment, x.sinks)
    given = Arguments(*tensors, case.head_dim**-0.5, part, case.q_offset, case.block_q, case.block_k)
    out, lse = eager.block_sparse_attention(*given.of_kept_blocks)
    before = out.clone()
    rest.add_rest_(given, out, lse)
    assert torch.equal(out[0, 0, : case.block_q], before[0, 0, : case.block_q])
    exact, _ = reference.block_rest_attention(*given)
    eager_error = attention_cases.relative_error(eager.block_rest_attention(*given)[0], exact)
    assert attention_cases.relative_error(out, exact) <= 1.5 * eager_error + 1e-6
    assert (out[lse == -torch.inf] == 0).all()


def test_no_share_and_one_that_is_not_a_number_add_nothing(triton_device: str) -> None:
    from sa_compile.kernels.block_rest_attention import triton as rest
    from sa_compile.kernels.block_rest_attention.op import Arguments

    query, key, value = torch.randn(3, 1, 1, 48, 16, device=triton_device)
    mask = torch.full((1, 1, 3, 1), -1, dtype=torch.int32, device=triton_device)
    share = torch.tensor([[[0.0, 0.3, torch.nan]]], device=triton_device)
    rest_value = torch.tensor([torch.nan, 1.0, 1.0], device=triton_device)[None, None, :, None].expand(
        1, 1, 3, 16
    )
    given = Arguments(
        query, key, value, mask, rest_value, share, torch.zeros_like(share), None, None, 0.25, 0.5, 0, 16, 16
    )
    out, lse = eager.block_sparse_attention(*given.of_kept_blocks)
    kept = out.clone()
    rest.add_rest_(given, out, lse)
    assert torch.equal(out[:, :, :16], kept[:, :, :16]) and torch.equal(out[:, :, 32:], kept[:, :, 32:])
    assert (out[:, :, 16:32] != kept[:, :, 16:32]).all()


def test_means_of_kept_blocks_that_are_nan_stay_out(triton_device: str) -> None:
    """Query block 2 drops key block 0, whose values are NaN, and block 3 keeps it and drops block 1."""
    from sa_compile.kernels.block_mean_attention import triton as means
    from sa_compile.kernels.block_mean_attention.op import Arguments

    query, key, value = torch.randn(3, 1, 1, 64, 16, device=triton_device)
    kept = torch.ones(1, 1, 4, 4, dtype=torch.bool, device=triton_device)
    kept[0, 0, 2, 0] = kept[0, 0, 3, 1] = False
    mask = blocks.pack_bits(kept)
    where = (None, None, None, 0.25, True, 0, 0, 16, 16)
    out, lse = eager.block_sparse_attention(query, key, value, mask, *where)
    value[:, :, :16] = float("nan")
    means.add_block_means_(Arguments(query, key, value, mask, None, None, 0.25, 0, 16, 16), out, lse)
    assert out[:, :, 32:48].isnan().all()
    assert out[:, :, :32].isfinite().all() and out[:, :, 48:].isfinite().all()


@pytest.mark.parametrize("segments", ["none", "right_padding"])
def test_a_ranks_query_blocks_are_those_of_all(segments: str, triton_device: str) -> None:
    """mask_blocks, which Triton does not have, is PyTorch's."""
    run = types.SimpleNamespace(
        select_adaptive=triton.select_adaptive,
        select_peaks=triton.select_peaks,
        select_budget=triton.select_budget,
        block_sparse_attention=triton.block_sparse_attention,
        mask_blocks=eager.mask_blocks,
    )
    query_stride.check(run, (32, 16), segments, 37, torch.float16, triton_device, tolerance=1e-3)
