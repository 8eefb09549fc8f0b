"""``select_budget``, with a rest and without, on Hopper: the oracle's blocks but for those near a bound."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sa_compile.kernels import choice, ops
from sa_compile.kernels.block_mean_attention.eager import block_means
from sa_compile.kernels.choice import Call, preferring
from sa_compile.kernels.select_budget import eager as budget_eager
from sa_compile.kernels.select_budget import reference as budget_reference
from sa_compile.kernels.select_budget.op import Arguments
from sa_compile.kernels.select_budget_rest import op as rest_op
from sa_compile.kernels.select_budget_rest import reference as rest_reference
from sa_compile.kernels.shared import blocks

# Exponentials are approximate, and 2-norms come from squares.
NEAR = 4e-3


@dataclass(frozen=True)
class Case:
    q_len: int = 640
    kv_len: int = 640
    q_offset: int = 0
    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    dim: int = 128
    value_dim: int = 0  # 0: dim
    dtype: torch.dtype = torch.bfloat16
    rows: int = 16
    padding: str = "none"  # or "left", "right"
    hidden: tuple[int, ...] = (200, 0, 130)  # keys that padding takes of each batch entry
    layout: str = "bhsd"  # or "bshd", transposed
    sharpness: float = 2.0
    keep_sink: bool = True
    window: int = 2
    q_stride: int = 1
    sinks: tuple[float, ...] | None = None  # of heads, or one for all


BASE = Case()
CASES = {
    "bf16": BASE,
    "fp16": replace(BASE, dtype=torch.float16),
    "head_dim_64": replace(BASE, dim=64, layout="bshd"),
    "head_dim_96": replace(BASE, dim=96),
    "head_dim_192": replace(BASE, dim=192, kv_len=900, q_offset=260),
    "head_dim_256": replace(BASE, dim=256, layout="bshd"),
    "values_of_128": replace(BASE, dim=192, value_dim=128, batch=2, padding="left"),
    "one_row_a_block": replace(BASE, rows=1),
    "every_row": replace(BASE, rows=128),
    "half_of_the_rows": replace(BASE, rows=64, q_len=300, kv_len=300),
    "ragged": replace(BASE, q_len=555, kv_len=555, layout="bshd"),
    "one_head_a_key_head": replace(BASE, heads=3, kv_heads=3, batch=2),
    "three_heads_a_key_head": replace(BASE, heads=3, kv_heads=1),
    "eight_heads_a_key_head": replace(BASE, heads=8, kv_heads=1, batch=2, dim=64),
    "left_padding": replace(BASE, batch=3, padding="left"),
    "right_padding": replace(BASE, batch=3, padding="right"),
    "padding_of_every_row": replace(
        BASE, batch=3, padding="right", q_len=300, kv_len=900, q_offset=577, hidden=(500, 40, 900)
    ),
    "offset_inside_a_block": replace(BASE, q_len=300, kv_len=900, q_offset=577, window=1),
    "rows_before_the_first_key": replace(BASE, q_len=640, kv_len=300, q_offset=-200),
    "positions_past_the_last_key": replace(BASE, q_len=900, kv_len=300),
    "positions_past_a_ragged_end": replace(BASE, q_len=300, kv_len=2000, q_offset=3000),
    "one_row": replace(BASE, q_len=1, kv_len=700, q_offset=699),
    "wide_window": replace(BASE, window=4),
    "no_sink": replace(BASE, keep_sink=False, window=1),
    "no_sink_padded": replace(BASE, keep_sink=False, window=1, padding="left", batch=2),
    "blocks_apart": replace(BASE, q_len=640, kv_len=1600, q_offset=128, q_stride=2),
    "blocks_far_apart_padded": replace(
        BASE, q_len=300, kv_len=1600, q_offset=256, q_stride=4, batch=2, padding="left", rows=4
    ),
    "two_ranges_of_keys": replace(BASE, q_len=300, kv_len=9000, q_offset=8700),
    "sinks": replace(BASE, sinks=(-2.0, 0.0, 3.0, 6.0)),
    "one_sink_padded": replace(BASE, sinks=(3.0,), batch=3, padding="left"),
    "sinks_of_every_row": replace(BASE, sinks=(-2.0, 0.0, 3.0, 6.0), rows=128),
    "sinks_of_blocks_apart": replace(
        BASE, q_len=640, kv_len=1600, q_offset=128, q_stride=2, sinks=(1.0, 2.0, 3.0, 4.0)
    ),
    "sinks_in_the_hundreds": replace(BASE, sharpness=100.0, sinks=(0.0, 200.0, 400.0, 800.0)),
    "sinks_without_end": replace(BASE, sinks=(float("-inf"), float("inf"), 60.0, -500.0)),
    "scores_in_the_hundreds": replace(BASE, sharpness=100.0),
}
BOUNDS = ((0.0, 9.0), (0.03, 9.0), (0.2, 9.0), (9.0, 0.3), (0.03, 0.3))


def random(case: Case, heads: int, length: int, dim: int, device: str) -> Tensor:
    if case.layout == "bshd":
        return torch.randn(case.batch, length, heads, dim, device=device).to(case.dtype).transpose(1, 2)
    return torch.randn(case.batch, heads, length, dim, device=device).to(case.dtype)


def inputs_of(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(0)
    query = random(case, case.heads, case.q_len, case.dim, device)
    key = random(case, case.kv_heads, case.kv_len, case.dim, device)
    if case.padding == "none":
        return query, key, None
    place = torch.arange(case.kv_len, device=device)
    hidden = torch.tensor(case.hidden[: case.batch], device=device)[:, None]
    padded = place < hidden if case.padding == "left" else place >= case.kv_len - hidden
    return query, key.masked_fill(padded[:, None, :, None], float("nan")), torch.where(padded, -1, 0).int()


def sinks_of(case: Case, device: str) -> Tensor | None:
    return None if case.sinks is None else torch.tensor(case.sinks, device=device)


def compare(given: Arguments, found: Tensor, grown: Tensor, squares: Tensor, expected: Tensor) -> None:
    kept = blocks.unpack_bits(found, -(-given.key.shape[2] // given.block_k))
    near = (grown - given.budget**2).abs() <= NEAR * given.budget**2
    near |= (squares - given.tau**2).abs() <= NEAR * given.tau**2
    assert torch.equal(kept | near, expected | near)
    if 0 < given.budget < 9 or 0 < given.tau < 9:
        assert near.float().mean() < 0.2


@pytest.mark.parametrize("name", CASES)
def test_the_cuda_kernel_keeps_the_oracles_blocks(name: str, cuda: str) -> None:
    case = CASES[name]
    call = Call("select_budget", torch.device(cuda), case.dtype, (case.dim, case.dim), 128, 128)
    if not choice.fits("cuda_sm90", call):
        pytest.skip("needs Hopper and the CUDA library")
    query, key, segment = inputs_of(case, cuda)
    where = (query, key, segment, case.sharpness * case.dim**-0.5, case.q_offset, 128, 128)
    sampled = (case.rows, case.keep_sink, case.window, case.q_stride, sinks_of(case, cuda))
    given = Arguments(*where, 0.0, 0.0, *sampled)
    grown, squares, forced, allowed = budget_reference.growths(given)
    for budget, tau in BOUNDS:
        bounded = given._replace(budget=budget, tau=tau)
        with preferring("cuda_sm90"):
            found = ops.select_budget_op(*bounded)
        expected = (forced | (grown >= budget**2) | (squares >= tau**2)) & allowed
        compare(bounded, found, grown, squares, expected)


def rest_inputs(case: Case, segment: Tensor | None, device: str) -> tuple[Tensor, Tensor]:
    """Values, some of them not finite, and an index that keeps few blocks for all heads."""
    value = random(case, case.kv_heads, case.kv_len, case.value_dim or case.dim, device)
    value[:, :, case.kv_len // 2, 3] = float("nan")
    value[:, 0, case.kv_len // 5, -1] = float("inf")
    if segment is not None:
        value = value.masked_fill((segment < 0)[:, None, :, None], float("nan"))
    n_q, n_k = -(-case.q_len // 128), -(-case.kv_len // 128)
    return value, blocks.pack_bits(torch.rand(case.batch, 1, n_q, n_k, device=device) < 0.2)


def compare_rest(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Value, share and level; the level where enough is kept for it to be exact."""
    (value, share, level), (exact_value, exact_share, exact_level) = found, expected
    torch.testing.assert_close(share.double(), exact_share.double(), atol=1e-3, rtol=2e-3)
    error = (value.double() - exact_value).norm()
    assert error <= 5e-3 * exact_value.norm() + 1e-6  # mean values are rounded to the values' dtype
    much = exact_share < 0.95
    torch.testing.assert_close(level[much].double(), exact_level[much].double(), atol=2e-2, rtol=1e-3)
    assert not level.isnan().any()


@pytest.mark.parametrize("name", CASES)
def test_the_cuda_kernel_gives_the_oracles_rest(name: str, cuda: str) -> None:
    case = CASES[name]
    dims = (case.dim, case.value_dim or case.dim)
    call = Call("select_budget_rest", torch.device(cuda), case.dtype, dims, 128, 128)
    if not choice.fits("cuda_sm90", call):
        pytest.skip("needs Hopper and the CUDA library")
    query, key, segment = inputs_of(case, cuda)
    value, mask = rest_inputs(case, segment, cuda)
    where = (key, value, mask, segment, case.sharpness * case.dim**-0.5, case.q_offset, 128, 128)
    sampled = (case.rows, case.keep_sink, case.window, case.q_stride, sinks_of(case, cuda))
    given = rest_op.Arguments(query, *where, 0.0, 0.0, *sampled)
    grown, squares, forced, allowed = budget_reference.growths(given.of_budget)
    given_too = blocks.unpack_bits(mask, allowed.shape[-1]) & allowed
    for budget, tau in ((0.03, 9.0), (9.0, 9.0), (0.2, 0.3)):
        bounded = given._replace(budget=budget, tau=tau)
        with preferring("cuda_sm90"):
            bits, *rest = ops.select_budget_rest_op(*bounded)
        expected = ((forced | (grown >= budget**2) | (squares >= tau**2)) & allowed) | given_too
        compare(bounded.of_budget, bits, grown, squares, expected)
        kept = blocks.unpack_bits(bits, allowed.shape[-1])
        assert not (given_too & ~kept).any() and not (kept & ~allowed).any()
        compare_rest(tuple(rest), rest_reference.rest_of(bounded, allowed & ~kept))


@pytest.mark.parametrize("heads, kv_heads, length", [(8, 2, 16384), (2, 1, 100_000)], ids=["16K", "100K"])
def test_long_prompts_as_pytorch_keeps_them(heads: int, kv_heads: int, length: int, cuda: str) -> None:
    """More than one range of keys and, at 100,000 tokens, than 4 rows a strip of query blocks."""
    case = replace(BASE, q_len=2048, kv_len=length, q_offset=length - 2048, heads=heads, kv_heads=kv_heads)
    if not choice.fits(
        "cuda_sm90", Call("select_budget", torch.device(cuda), case.dtype, (128, 128), 128, 128)
    ):
        pytest.skip("needs Hopper and the CUDA library")
    query, key, _ = inputs_of(case, cuda)
    given = Arguments(query, key, None, 0.4, case.q_offset, 128, 128, 0.03, 0.1, 32, True, 2)
    share, squares, _, level = budget_eager.block_shares(given)
    bits = blocks.unpack_bits(budget_eager.select_budget(given), -(-length // 128))
    grown = budget_eager.growths(share.masked_fill(~allowed_candidates(given), 0.0))
    with preferring("cuda_sm90"):
        found = ops.select_budget_op(*given)
    compare(given, found, grown, squares, bits)

    value, mask = rest_inputs(case, None, cuda)
    given_rest = rest_op.Arguments(query, key, value, torch.zeros_like(mask), *given[2:])
    with preferring("cuda_sm90"):
        again, *rest = ops.select_budget_rest_op(*given_rest)
    assert torch.equal(again, found)
    kept = blocks.unpack_bits(found, share.shape[-1])
    left_out, kept_share = share.masked_fill(kept, 0.0), share.masked_fill(~kept, 0.0).sum(-1)
    mean = block_means(key, value, None, 128)[1].repeat_interleave(heads // kv_heads, 1)
    rest_value = left_out @ torch.where(mean.isfinite(), mean, 0.0)
    compare_rest(tuple(rest), (rest_value, left_out.sum(-1), level + kept_share.log()))


def allowed_candidates(a: Arguments) -> Tensor:
    """Bool [n_query_blocks, n_key_blocks]: causality allows the block, and nothing forces it."""
    row = torch.arange(a.query.shape[2] // 128, device=a.query.device)[:, None] + a.q_offset // 128
    block = torch.arange(-(-a.key.shape[2] // 128), device=a.query.device)
    return (block <= row - a.window_slashes) & (block > 0)


def test_too_many_keys_are_refused(cuda: str) -> None:
    if not choice.fits(
        "cuda_sm90", Call("select_budget", torch.device(cuda), torch.bfloat16, (64, 64), 128, 128)
    ):
        pytest.skip("needs Hopper and the CUDA library")
    query = torch.zeros(1, 1, 1, 64, device=cuda, dtype=torch.bfloat16)
    key = query.expand(1, 1, 27648 * 128 + 1, 64).contiguous()
    with (
        preferring("cuda_sm90"),
        pytest.raises(RuntimeError, match="'key' has 3538945 keys, at most 3538944"),
    ):
        ops.select_budget(query, key, budget=0.1, tau=0.1, q_offset=27648 * 128)
