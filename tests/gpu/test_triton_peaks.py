"""Triton's ``select_peaks`` against the oracle, on a GPU or under the interpreter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from support.implementations import eager, triton

from sa_compile.kernels.select_adaptive.reference import byte_product
from sa_compile.kernels.select_peaks import reference
from sa_compile.kernels.select_peaks.op import Arguments
from sa_compile.kernels.shared import blocks

NEAR = 1e-4  # logs of shares


@dataclass(frozen=True)
class Case:
    q_len: int = 160
    kv_len: int = 160
    q_offset: int = 0
    block_q: int = 32
    block_k: int = 16
    heads: int = 2
    kv_heads: int = 1
    dim: int = 24
    landmarks: int = 5
    padding: str = "none"  # or "left", "right", "all_of_one"
    keep_sink: bool = True
    window: int = 1
    last_rows: int = 0
    sinks: tuple[float, ...] | None = None
    dtype: torch.dtype = torch.float16


BASE = Case()
CHUNK = replace(BASE, q_len=50, kv_len=650, q_offset=597, block_q=64)  # of two words
CASES = {
    "whole_blocks": BASE,
    "ragged": replace(BASE, q_len=101, kv_len=101, block_k=32, window=2),
    "wide_heads": replace(BASE, q_len=101, kv_len=101, dim=512),
    "second_chunk": CHUNK,
    "second_chunk_in_fp32": replace(CHUNK, dtype=torch.float32, padding="right", sinks=(2.0,)),
    "one_landmark": replace(CHUNK, landmarks=1),
    "fifteen_landmarks": replace(CHUNK, landmarks=15, window=3, sinks=(-1.0, 4.0)),
    "landmarks_of_two_products": replace(CHUNK, landmarks=17, block_k=32, padding="left"),
    "more_landmarks_than_keys": replace(BASE, landmarks=17, padding="left"),
    "groups_of_heads": replace(BASE, heads=4, kv_heads=2),
    "negative_offset": replace(BASE, q_len=90, kv_len=60, q_offset=-20, block_q=16),
    "positions_past_the_keys": replace(BASE, q_len=64, kv_len=200, q_offset=240),
    "positions_past_padded_keys": replace(BASE, q_len=64, kv_len=200, q_offset=240, padding="left"),
    "left_padding": replace(BASE, padding="left", sinks=(-1.0, 2.0)),
    "right_padding": replace(BASE, padding="right", last_rows=20),
    "padding_of_every_row": replace(BASE, padding="all_of_one"),
    "padding_without_a_sink_block": replace(BASE, padding="left", keep_sink=False),
    "sinks_without_end": replace(BASE, sinks=(float("-inf"), float("inf"))),
    "wide_blocks": replace(BASE, q_len=300, kv_len=300, block_q=128, block_k=128, heads=1, landmarks=7),
    "bits_of_more_tiles_than_an_integer_has": replace(
        BASE, q_len=16, kv_len=8500, q_offset=8484, block_q=16, heads=1, landmarks=7
    ),
}


def arguments(case: Case, device: str) -> Arguments:
    """Random ones; keys that nobody sees hold NaN."""
    torch.manual_seed(0)
    batch = 1 if case.padding == "none" else 2
    query = (2 * torch.randn(batch, case.heads, case.q_len, case.dim)).to(device, case.dtype)
    key = torch.randn(batch, case.kv_heads, case.kv_len, case.dim).to(device, case.dtype)
    key = key + torch.randn(case.dim).to(device, case.dtype)  # what keys have in common is multiplied exactly
    segment = None
    if case.padding != "none":
        count = torch.tensor([[5], [case.kv_len]] if case.padding == "all_of_one" else [[17], [40]])
        place = torch.arange(case.kv_len)
        hidden = place < count if case.padding == "left" else place >= case.kv_len - count
        segment = torch.where(hidden, -1, 0).int().to(device)
        key = key.masked_fill((segment < 0)[:, None, :, None], float("nan"))
    terms = eager.block_representatives(key, segment, case.block_k, case.landmarks)
    sinks = None if case.sinks is None else torch.tensor(case.sinks, device=device)
    where = (segment, case.dim**-0.5, case.q_offset, case.block_q, case.block_k)
    forced = (case.keep_sink, case.window, case.last_rows)
    return Arguments(query, key, *terms, *where, 0.0, *forced, 1, sinks)


@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_the_oracle(name: str, triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sa_compile.kernels.select_peaks import triton as peaks_triton

    case = CASES[name]
    given = arguments(case, triton_device)
    scratch = 2 * given.query.shape[0] * case.heads * case.block_q * max(32, case.dim)
    monkeypatch.setattr(peaks_triton, "SCRATCH_BYTES", scratch)  # a query block or two a group
    found, *_ = reference.peaks(given, byte_product)
    for peak in (0.0, 0.15, 0.7):
        bits = peaks_triton.select_peaks(given._replace(peak=peak))
        kept = blocks.unpack_bits(bits, found.shape[-1])
        wanted = math.log(peak) if peak > 0 else -math.inf
        exact = reference.select_peaks(given._replace(peak=peak), byte_product)
        near = (found - wanted).abs() <= NEAR
        assert torch.equal(kept | near, exact | near)
        unused = blocks.unpack_bits(bits, 32 * bits.shape[-1])[..., found.shape[-1] :]
        assert not unused.any()


def test_a_row_of_zeros_looks_for_every_block_or_for_none(triton_device: str) -> None:
    from sa_compile.kernels.select_peaks import triton as peaks_triton

    given = arguments(BASE, triton_device)
    given = given._replace(query=torch.zeros_like(given.query))
    n_key_blocks = given.representatives.shape[3]
    _, forced, allowed = reference.peaks(given)
    for peak, kept in ((1e-4, allowed), (0.5, forced)):
        bits = peaks_triton.select_peaks(given._replace(peak=peak))
        assert torch.equal(blocks.unpack_bits(bits, n_key_blocks), kept)


@pytest.mark.parametrize("op", ["select_adaptive", "select_peaks"])
def test_without_a_key_no_block_is_kept(op: str, triton_device: str) -> None:
    given = arguments(replace(BASE, kv_len=0), triton_device)
    assert not getattr(triton, op)(*given).any()
