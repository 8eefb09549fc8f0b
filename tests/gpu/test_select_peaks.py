"""The kernels of ``select_peaks`` against the oracle: the same blocks but for shares nearly at the peak."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from gpu import selection_cases
from gpu.selection_cases import BASE, Case, inputs
from torch import Tensor

from sa_compile.kernels import choice, ops
from sa_compile.kernels.choice import Call, preferring
from sa_compile.kernels.select_adaptive.reference import byte_product
from sa_compile.kernels.select_peaks import eager as peaks_eager
from sa_compile.kernels.select_peaks import reference as peaks_reference
from sa_compile.kernels.select_peaks.op import Arguments
from sa_compile.kernels.shared import blocks

# Of logs of shares: what fp32 and approximate exponentials change.
NEAR_PEAK = 0.004
MANY = 20_000  # keys: some of their numbers lie near to the middle of two bytes

LONG = replace(BASE, q_len=1700, kv_len=1700)  # eight blocks before a query block's own, and eight more
CASES = {
    **selection_cases.CASES,
    **{f"normals_{dim}": replace(LONG, dim=dim, landmarks=7) for dim in (64, 96, 128, 192, 256)},
    **{f"normals_{dim}_padded": replace(LONG, dim=dim, batch=3, padding="left") for dim in (64, 128, 256)},
    "normals_fp16": replace(LONG, dtype=torch.float16, sinks=(-2.0, 0.0, 3.0, 6.0), padding="right", batch=3),
    "normals_of_padding": replace(LONG, batch=2, padding="left", hidden=(1100, 1024)),
    "normals_steep": replace(LONG, sharpness=60.0, landmarks=7),
    "normals_of_a_second_chunk": replace(BASE, q_len=300, kv_len=2400, q_offset=2077),
    # Not a whole eight behind the eighth block: rows that come after all keys do not make it one.
    "positions_past_some_of_eight": replace(BASE, q_len=300, kv_len=1500, q_offset=3000),
    "many_words": replace(BASE, q_len=256, kv_len=70000, q_offset=69744, heads=2, kv_heads=1, landmarks=7),
    "many_words_fifteen": replace(BASE, q_len=256, kv_len=40000, q_offset=39744, heads=2, kv_heads=1, dim=64),
}


@pytest.fixture(params=["cuda_sm90", "triton"])
def kernel(cuda: str, request: pytest.FixtureRequest):
    """The device, with one kernel only; skips where it cannot run."""
    call = Call("select_peaks", torch.device(cuda), torch.bfloat16, (128, 128), 128, 128, 16)
    if not choice.fits(request.param, call):
        pytest.skip("needs a Hopper GPU and the CUDA library built for it")
    with preferring(request.param, "pytorch"):
        yield cuda


def compare(given: Arguments, found: Tensor, expected: dict[float, Tensor], near: float = NEAR_PEAK) -> None:
    """``found``: the logs of the largest shares; ``expected``: what a peak keeps."""
    for peak, exact in expected.items():
        bits = ops.select_peaks_op(*given._replace(peak=peak))
        kept = blocks.unpack_bits(bits, exact.shape[-1])
        apart = found - (math.log(peak) if peak > 0 else -torch.inf)
        near_peak = apart.abs() <= near
        wrong = (kept != exact) & ~near_peak
        assert not wrong.any(), f"peak {peak}: {wrong.nonzero()}, from its log {apart[wrong]}"
        assert near_peak.float().mean() < 0.15 or peak == 0
        unused = blocks.unpack_bits(bits, 32 * bits.shape[-1])[..., exact.shape[-1] :]
        assert not unused.any()


def one_byte(given: Arguments) -> float:
    """Of logs of shares: what one number changes if fp32 and float64 round it to neighbouring bytes.

    Of millions of numbers some lie so near to the middle of two.
    """
    return given.scale * given.query.abs().max().item() * given.key.abs().max().item() / 127


def oracle_of(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """What the oracle finds with scores from bytes, which blocks are forced and which allowed; on the GPU."""
    on_cpu = Arguments(*(x.cpu() if isinstance(x, Tensor) else x for x in given))
    found, forced, allowed = (x.cuda() for x in peaks_reference.peaks(on_cpu, byte_product))
    return found, forced, allowed


@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_the_oracle(name: str, kernel: str) -> None:
    case = CASES[name]
    query, key, segment = inputs(case, seed=sorted(CASES).index(name))
    terms = ops.block_representatives_op(key, segment, 128, case.landmarks)
    where = (segment, case.dim**-0.5, case.q_offset, 128, 128)
    sinks = None if case.sinks is None else torch.tensor(case.sinks, device=kernel)
    forced = (case.keep_sink, case.window, case.last_rows)
    given = Arguments(query, key, *terms, *where, 0.0, *forced, 1, sinks)
    found, forced_blocks, allowed = oracle_of(given)
    expected = {peak: forced_blocks | ((found >= math.log(peak)) & allowed) for peak in telling_peaks(found)}
    near = NEAR_PEAK if case.kv_len < MANY else NEAR_PEAK + one_byte(given)
    compare(given, found, {0.0: allowed, **expected}, near)


def telling_peaks(found: Tensor) -> tuple[float, ...]:
    """Peaks that a quarter and three quarters of the blocks reach, for totals may lack much; and one more."""
    finite = found[found > -torch.inf]
    quantiles = finite.quantile(torch.tensor([0.25, 0.75], dtype=finite.dtype, device=finite.device))
    return 0.1, *(quantiles.exp().tolist() if finite.numel() else ())


@pytest.mark.parametrize("last_rows", [0, 128])
@pytest.mark.parametrize("q_offset", [0, 1280])
@pytest.mark.parametrize("dim", [64, 128])
def test_a_padded_prompt_keeps_what_it_keeps_alone(
    dim: int, q_offset: int, last_rows: int, kernel: str
) -> None:
    """Right padding: what is beside a prompt changes none of its rows' scores."""
    hidden = (300, 0, 641)
    case = Case(
        q_len=1000, kv_len=1000 + q_offset, q_offset=q_offset, batch=3, padding="right", hidden=hidden
    )
    query, key, segment = inputs(replace(case, dim=dim), seed=3)
    where, after = (dim**-0.5, q_offset, 128, 128), (True, 2)

    def kept(query: Tensor, key: Tensor, segment: Tensor | None) -> tuple[Arguments, Tensor]:
        terms = ops.block_representatives_op(key, segment, 128, 15)
        given = Arguments(query, key, *terms, segment, *where, 0.1, *after, last_rows)
        return given, blocks.unpack_bits(ops.select_peaks_op(*given), -(-key.shape[2] // 128))

    _, found = kept(query, key, segment)
    for b, count in enumerate(hidden):
        own_query, own_key = query[b : b + 1, :, : 1000 - count], key[b : b + 1, :, : case.kv_len - count]
        given, alone = kept(own_query, own_key, None)
        near_peak = (oracle_of(given)[0] - math.log(0.1)).abs() <= NEAR_PEAK
        own = found[b : b + 1, :, : alone.shape[2]]
        assert not own[..., alone.shape[3] :].any()
        assert torch.equal(own[..., : alone.shape[3]] | near_peak, alone | near_peak)


class ByteBlocks(peaks_eager.PeakBlocks):
    """PyTorch's reading of the blocks, with scores from bytes as the kernels' are. No padding."""

    def _scores(self, rows: slice, representatives: Tensor) -> Tensor:
        members = representatives.unflatten(-1, (-1, self.n_key_blocks)).permute(0, 1, 3, 4, 2)
        group = self.query.shape[1] // self.key.shape[1]
        found = [
            byte_product(
                self.query[0, head, rows].double(),
                members[0, head // group].double(),
                torch.ones_like(members[0, 0, ..., 0], dtype=torch.bool),
                self.representatives[0, head // group, 0, 0].double(),
            ).flatten(1)
            for head in range(self.query.shape[1])
        ]
        return self.scale * torch.stack(found)[None].float()


@pytest.mark.parametrize("sharpness", [2.0, 30.0])
@pytest.mark.parametrize("landmarks", [7, 15])
@pytest.mark.parametrize("dim", [64, 128])
def test_bytes_change_few_of_the_blocks_that_exact_scores_keep(
    sharpness: float, landmarks: int, dim: int, kernel: str
) -> None:
    """Keys with a large part in common, as biases give them."""
    case = Case(q_len=8192, kv_len=8192, heads=4, kv_heads=2, dim=dim, sharpness=sharpness)
    query, key, _ = inputs(case, seed=2)
    key += 40 * torch.randn(1, 2, 1, dim, device="cuda").to(key.dtype)
    terms = ops.block_representatives_op(key, None, 128, landmarks)
    where = (sharpness**-0.5 * dim**-0.5, 0, 128, 128)
    given = Arguments(query, key, *terms, None, *where, 0.1, True, 2, 0)
    peaks = peaks_eager.PeakBlocks(given).peaks()
    given = given._replace(peak=peaks[peaks > -torch.inf].median().exp().item())
    exact, found = peaks_eager.select_peaks(given), ops.select_peaks_op(*given)
    exact, found = (blocks.unpack_bits(mask, 64) for mask in (exact, found))
    assert (exact & ~found).sum() < 0.03 * exact.sum() and (found & ~exact).sum() < 0.03 * exact.sum()


@pytest.mark.parametrize("landmarks", [7, 15])
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_long_prompts_equal_pytorch(landmarks: int, dim: int, kernel: str) -> None:
    """Several items a thread block, and more blocks than one word."""
    case = Case(q_len=16200, kv_len=16200, heads=8, kv_heads=2, dim=dim, landmarks=landmarks)
    query, key, _ = inputs(case, seed=1)
    terms = ops.block_representatives_op(key, None, 128, landmarks)
    given = Arguments(query, key, *terms, None, dim**-0.5, 0, 128, 128, 0.2, True, 2, 0)
    found = ByteBlocks(given)
    peaks = found.peaks().double()
    causal = torch.ones(127, 127, dtype=torch.bool, device="cuda").tril()
    expected = {peak: (found.forced | (peaks >= math.log(peak))) & causal for peak in (0.02, 0.05, 0.1)}
    compare(given, peaks, expected, NEAR_PEAK + one_byte(given))
