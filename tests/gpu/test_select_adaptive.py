"""The kernels of ``select_adaptive`` against the oracle: the same blocks but for shares nearly at tau."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sa_compile.kernels import choice, ops
from sa_compile.kernels.choice import Call, preferring
from sa_compile.kernels.select_adaptive import eager as adaptive_eager
from sa_compile.kernels.select_adaptive import reference as adaptive_reference
from sa_compile.kernels.select_adaptive.op import Arguments
from sa_compile.kernels.shared import blocks

# Squares are kept in bfloat16 until a row's total is known: a squared share is off by 2^-9 at most.
NEAR_TAU = 0.008
# Of millions of numbers some lie so near to the middle of two bytes that fp32 and float64 round them apart.
NEAR_TAU_OF_MILLIONS = 0.016


@dataclass(frozen=True)
class Case:
    q_len: int = 640
    kv_len: int = 640
    q_offset: int = 0
    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    landmarks: int = 15
    padding: str = "none"  # or "left", "right"
    hidden: tuple[int, ...] = (200, 0, 130)  # keys that padding takes of each batch entry
    layout: str = "bhsd"  # or "bshd", transposed
    sharpness: float = 2.0
    keep_sink: bool = True
    window: int = 2
    last_rows: int = 0
    sinks: tuple[float, ...] | None = None  # of heads, or one for all


BASE = Case()
CASES = {
    "bf16": BASE,
    "fp16": replace(BASE, dtype=torch.float16),
    "head_dim_64": replace(BASE, dim=64, layout="bshd"),
    "seven_landmarks": replace(BASE, landmarks=7, dim=64),
    "seven_landmarks_128": replace(BASE, landmarks=7, q_len=1500, kv_len=1500),
    "ragged": replace(BASE, q_len=555, kv_len=555, layout="bshd"),
    "one_head_a_key_head": replace(BASE, heads=3, kv_heads=3, batch=2),
    "three_heads_a_key_head": replace(BASE, heads=3, kv_heads=1),
    "eight_heads_a_key_head": replace(BASE, heads=8, kv_heads=1, batch=2, dim=64),
    "left_padding": replace(BASE, batch=3, padding="left"),
    "right_padding": replace(BASE, batch=3, padding="right", landmarks=7),
    "last_rows_before_padding": replace(BASE, batch=3, padding="right", last_rows=130),
    "padding_of_every_row": replace(
        BASE,
        batch=3,
        padding="right",
        q_len=300,
        kv_len=900,
        q_offset=577,
        hidden=(500, 40, 900),
        last_rows=1,
    ),
    "rows_without_a_key_behind_padding": replace(
        BASE, batch=2, padding="right", q_len=900, kv_len=640, last_rows=40
    ),
    "second_chunk": replace(BASE, q_len=200, kv_len=840, q_offset=640),
    "offset_inside_a_block": replace(BASE, q_len=300, kv_len=900, q_offset=577, window=1),
    "rows_before_the_first_key": replace(BASE, q_len=640, kv_len=300, q_offset=-200),
    "positions_past_the_last_key": replace(BASE, q_len=900, kv_len=300),
    "positions_past_a_ragged_end": replace(BASE, q_len=300, kv_len=2000, q_offset=3000, landmarks=7),
    "one_row": replace(BASE, q_len=1, kv_len=700, q_offset=699),
    "wide_window": replace(BASE, window=4),
    "no_sink": replace(BASE, keep_sink=False, window=1),
    "no_sink_padded": replace(BASE, keep_sink=False, window=1, padding="left", batch=2),
    "last_rows": replace(BASE, last_rows=130),
    "all_rows_last": replace(BASE, last_rows=5000, padding="left"),
    "last_rows_of_a_second_chunk": replace(BASE, q_len=300, kv_len=900, q_offset=577, last_rows=1),
    "flat": replace(BASE, sharpness=0.1),
    # Scores of several hundred: a landmark's exceeds every forced key's by more than a float can hold.
    "steep": replace(BASE, sharpness=60.0),
    "steep_no_sink": replace(BASE, sharpness=60.0, keep_sink=False, window=1, landmarks=7),
    **{f"head_dim_{dim}": replace(BASE, dim=dim, batch=3, padding="left") for dim in (96, 192, 256)},
    **{f"seven_landmarks_{dim}": replace(BASE, dim=dim, landmarks=7) for dim in (96, 192, 256)},
    "head_dim_256_ragged": replace(BASE, dim=256, q_len=555, kv_len=555, layout="bshd", heads=8, kv_heads=1),
    "head_dim_192_fp16": replace(BASE, dim=192, dtype=torch.float16, q_len=1500, kv_len=1500),
    "sinks": replace(BASE, sinks=(-2.0, 0.0, 3.0, 6.0)),
    "one_sink_padded": replace(BASE, sinks=(3.0,), batch=3, padding="left", q_len=555, kv_len=555),
    "sinks_of_three_heads_a_key_head": replace(
        BASE, heads=3, kv_heads=1, batch=2, sinks=(5.0, 0.0, -3.0), dim=64, landmarks=7
    ),
    # Beside scores of several hundred, and without any that is exact before the estimates come.
    "sinks_steep": replace(BASE, sharpness=60.0, sinks=(0.0, 200.0, 400.0, 800.0)),
    "sinks_without_end": replace(BASE, sinks=(float("-inf"), float("inf"), 60.0, -500.0)),
    "sinks_256": replace(BASE, dim=256, sinks=(-2.0, 0.0, 3.0, 6.0)),
    "two_words": replace(BASE, q_len=256, kv_len=5000, q_offset=4744, heads=2, kv_heads=1),
}


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Query, key and key segments; keys that nobody sees hold NaN."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def random(heads: int, length: int) -> Tensor:
        shape = (case.batch, heads, length, case.dim)
        if case.layout == "bshd":
            shape = (case.batch, length, heads, case.dim)
        tensor = torch.randn(shape, generator=generator, device="cuda")
        return tensor.transpose(1, 2) if case.layout == "bshd" else tensor

    query = (case.sharpness * random(case.heads, case.q_len)).to(case.dtype)
    key = random(case.kv_heads, case.kv_len).to(case.dtype)
    if case.padding == "none":
        return query, key, None
    count = torch.tensor(case.hidden, device="cuda")[: case.batch, None]
    place = torch.arange(case.kv_len, device="cuda")
    hidden = place < count if case.padding == "left" else place >= case.kv_len - count
    key = key.masked_fill(hidden[:, None, :, None], float("nan"))
    return query, key, torch.where(hidden, -1, 0).int()


@pytest.fixture(params=["cuda_sm90", "triton"])
def kernel(cuda: str, request: pytest.FixtureRequest):
    """The device, with one kernel only; skips where it cannot run."""
    call = Call("select_adaptive", torch.device(cuda), torch.bfloat16, (128, 128), 128, 128, 16)
    if not choice.fits(request.param, call):
        pytest.skip("needs a Hopper GPU and the CUDA library built for it")
    with preferring(request.param, "pytorch"):
        yield cuda


def compare(given: Arguments, squares: Tensor, expected: dict[float, Tensor], near: float = NEAR_TAU) -> None:
    for tau, exact in expected.items():
        bits = ops.select_adaptive_op(*given._replace(tau=tau))
        kept = blocks.unpack_bits(bits, exact.shape[-1])
        near_tau = (squares - tau**2).abs() <= near * tau**2
        wrong = (kept != exact) & ~near_tau
        assert not wrong.any(), f"tau {tau}: {wrong.nonzero()}, of tau squared {squares[wrong] / tau**2}"
        assert near_tau.float().mean() < 0.15 or tau == 0
        unused = blocks.unpack_bits(bits, 32 * bits.shape[-1])[..., exact.shape[-1] :]
        assert not unused.any()


@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_the_oracle(name: str, kernel: str) -> None:
    case = CASES[name]
    query, key, segment = inputs(case, seed=sorted(CASES).index(name))
    terms = ops.block_representatives_op(key, segment, 128, case.landmarks)
    where = (segment, case.dim**-0.5, case.q_offset, 128, 128)
    sinks = None if case.sinks is None else torch.tensor(case.sinks, device=kernel)
    forced = (case.keep_sink, case.window, case.last_rows)
    given = Arguments(query, key, *terms, *where, 0.0, *forced, 1, sinks)
    on_cpu = Arguments(*(x.cpu() if isinstance(x, Tensor) else x for x in given))
    product = adaptive_reference.byte_product
    squares, *_ = adaptive_reference.squared_shares(on_cpu, product)
    expected = {
        tau: adaptive_reference.select_adaptive(on_cpu._replace(tau=tau), product).cuda()
        for tau in (0.0, 0.1, 0.3)
    }
    compare(given, squares.cuda(), expected)


@pytest.mark.parametrize("last_rows", [0, 128])
@pytest.mark.parametrize("q_offset", [0, 260])
@pytest.mark.parametrize("dim", [64, 128])
def test_a_padded_prompt_keeps_what_it_keeps_alone(
    dim: int, q_offset: int, last_rows: int, kernel: str
) -> None:
    """Right padding. A prompt alone is scored in another order: shares nearly at tau differ."""
    hidden = (300, 0, 641)
    case = Case(
        q_len=1000, kv_len=1000 + q_offset, q_offset=q_offset, batch=3, padding="right", hidden=hidden
    )
    query, key, segment = inputs(replace(case, dim=dim), seed=3)
    where, after = (dim**-0.5, q_offset, 128, 128), (True, 2)

    def kept(query: Tensor, key: Tensor, segment: Tensor | None) -> Tensor:
        terms = ops.block_representatives_op(key, segment, 128, 15)
        bits = ops.select_adaptive_op(*Arguments(query, key, *terms, segment, *where, 0.1, *after, last_rows))
        return blocks.unpack_bits(bits, -(-key.shape[2] // 128))

    found = kept(query, key, segment)
    for b, count in enumerate(hidden):
        own_query, own_key = query[b : b + 1, :, : 1000 - count], key[b : b + 1, :, : case.kv_len - count]
        alone = kept(own_query, own_key, None)
        terms = [x.cpu() for x in ops.block_representatives_op(own_key, None, 128, 15)]
        on_cpu = Arguments(own_query.cpu(), own_key.cpu(), *terms, None, *where, 0.1, *after, last_rows)
        squares, *_ = adaptive_reference.squared_shares(on_cpu, adaptive_reference.byte_product)
        near_tau = ((squares - 0.01).abs() <= NEAR_TAU * 0.01).cuda()
        own = found[b : b + 1, :, : alone.shape[2]]
        assert not own[..., alone.shape[3] :].any()
        assert torch.equal(own[..., : alone.shape[3]] | near_tau, alone | near_tau)


class ByteBlocks(adaptive_eager.AdaptiveBlocks):
    """PyTorch's reading of the blocks, with scores from bytes as the kernel's are. No padding."""

    def _scores(self, rows: slice, representatives: Tensor) -> Tensor:
        members = representatives.unflatten(-1, (-1, self.n_key_blocks)).permute(0, 1, 3, 4, 2)
        group = self.query.shape[1] // self.key.shape[1]
        found = [
            adaptive_reference.byte_product(
                self.query[0, head, rows].double(),
                members[0, head // group].double(),
                torch.ones_like(members[0, 0, ..., 0], dtype=torch.bool),
                members[0, head // group, 0, 0].double(),
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
    given = Arguments(query, key, *terms, None, *where, 0.2, True, 2, 0)
    exact, found = adaptive_eager.select_adaptive(given), ops.select_adaptive_op(*given)
    exact, found = (blocks.unpack_bits(mask, 64) for mask in (exact, found))
    assert (exact & ~found).sum() < 0.02 * exact.sum() and (found & ~exact).sum() < 0.02 * exact.sum()


@pytest.mark.parametrize("landmarks", [7, 15])
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_long_prompts_equal_pytorch(landmarks: int, dim: int, kernel: str) -> None:
    """Several items a thread block, and more blocks than one word."""
    case = Case(q_len=16200, kv_len=16200, heads=8, kv_heads=2, dim=dim, landmarks=landmarks)
    query, key, _ = inputs(case, seed=1)
    terms = ops.block_representatives_op(key, None, 128, landmarks)
    where = (dim**-0.5, 0, 128, 128)
    given = Arguments(query, key, *terms, None, *where, 0.2, True, 2, 0)
    found = ByteBlocks(given)
    squares = found.squared_shares().double()
    causal = torch.ones(127, 127, dtype=torch.bool, device="cuda").tril()
    expected = {tau: (found.forced | (squares >= tau**2)) & causal for tau in (0.02, 0.1, 0.2)}
    compare(given, squares, expected, NEAR_TAU_OF_MILLIONS)
