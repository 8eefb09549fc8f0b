"""The kernels of ``select_adaptive`` against the oracle: the same blocks but for shares nearly at tau."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu.selection_cases import CASES, Case, inputs
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
