"""Calls of the selections by landmarks, on the inputs that both are tried on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from support.attention_inputs import SELECTION, Case, Inputs, make_inputs
from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.select_adaptive import reference as adaptive_reference
from sa_compile.kernels.select_peaks import reference as peaks_reference
from sa_compile.kernels.shared import blocks

LANDMARKS = 5
# Of logarithms of shares: the error of fp32 sums of products, where scores are at most tens.
NEAR = 1e-4
# Of hypothesis, for ``drawn``.
SMALL = {
    "seed": st.integers(0, 1000),
    "q_offset": st.sampled_from([0, 0, 37, 64]),
    "block": st.sampled_from([(16, 16), (32, 16), (64, 32)]),
    "padding": st.sampled_from(["none", "left_padding", "right_padding"]),
}


def sharpened(case: Case, seed: int = 0) -> Inputs:
    """Inputs whose rows look for few keys, so that shares spread over orders of magnitude."""
    inputs = make_inputs(case, seed)
    inputs.query *= 2
    return inputs


def selection(
    record: Any,
    case: Case,
    inputs: Inputs,
    least: float,
    keep_sink: bool = True,
    window: int = 2,
    landmarks: int = LANDMARKS,
    last_rows: int = 0,
) -> Any:
    """Arguments of select_adaptive or select_peaks, whose record it is; ``least``: tau, or peak."""
    representatives = ops.block_representatives_op(inputs.key, inputs.key_segment, case.block_k, landmarks)
    where = (inputs.key_segment, case.scale, case.q_offset, case.block_q, case.block_k)
    return record(inputs.query, inputs.key, *representatives, *where, least, keep_sink, window, last_rows)


def drawn(
    record: Any,
    least: float,
    seed: int,
    q_offset: int,
    block: tuple[int, int],
    padding: str,
    q_len: int = 130,
) -> tuple[Case, Any]:
    """A case of ``SMALL`` and its arguments."""
    case = SELECTION.but(batch=2, q_len=q_len, kv_len=q_len + q_offset, q_offset=q_offset, segments=padding)
    case = case.but(block_q=block[0], block_k=block[1])
    return case, selection(record, case, sharpened(case, seed), least)


def sinks_of(case: Case) -> Tensor:
    """A logit a head: that of the first takes little from the keys, that of the last most."""
    return torch.linspace(-1.0, 6.0, case.heads)


def unpacked(mask: Tensor, case: Case) -> Tensor:
    return blocks.unpack_bits(mask, -(-case.kv_len // case.block_k))


def causal_and_visible(case: Case, key_segment: Tensor | None) -> Tensor:
    """Bool [B|1, 1|Hq, n_query_blocks, n_key_blocks]: what causality and padding allow whole query blocks."""
    sizes = (case.q_len, case.kv_len, case.q_offset, case.block_q, case.block_k)
    allowed = blocks.causal_blocks(*sizes, torch.device("cpu"))
    if key_segment is None:
        return allowed
    missing = -case.kv_len % case.block_k
    valid = torch.nn.functional.pad(key_segment == 0, (0, missing)).unflatten(-1, (-1, case.block_k)).any(-1)
    return allowed & valid[:, None, None]


def assert_one_sink_is_that_of_all_heads(select: Callable, given: Any) -> None:
    """And that a sink of 4 changes what is kept."""
    one, all_heads = torch.tensor([4.0]), torch.full((2 * given.query.shape[1],), 4.0)[::2]
    found = select(given._replace(sinks=one))
    assert torch.equal(found, select(given._replace(sinks=all_heads)))
    assert not torch.equal(found, select(given))


def assert_the_least_sink_is_none_and_large_ones_leave(
    forced: Tensor, select: Callable, given: Any, case: Case
) -> None:
    """``forced``: blocks that are kept beside any sink."""
    none, large = (torch.full((case.heads,), sink) for sink in (-torch.inf, 60.0))
    assert torch.equal(select(given._replace(sinks=none)), select(given))
    for sinks in (large, torch.full((1,), torch.inf)):
        assert torch.equal(unpacked(select(given._replace(sinks=sinks)), case), forced)


def assert_shares_equal_the_oracles(kept: Tensor, given: Any) -> None:
    """Blocks of select_adaptive, but for shares nearly at tau, of which there are few."""
    tau = given.tau
    squares, *_ = adaptive_reference.squared_shares(given)
    expected = adaptive_reference.select_adaptive(given)
    near_tau = (squares - tau**2).abs() <= 1e-4 * tau**2
    assert torch.equal(kept | near_tau, expected | near_tau)
    assert near_tau.float().mean() < 0.05 or tau == 0


def assert_peaks_equal_the_oracles(
    kept: Tensor, given: Any, oracle: tuple[Tensor, Tensor, Tensor] | None = None
) -> None:
    """Blocks of select_peaks, but for logarithms nearly that of ``peak``, of which there are few.

    ``oracle``: what its ``peaks`` gives, for whatever ``given.peak`` is.
    """
    found, forced, allowed = oracle or peaks_reference.peaks(given)
    level = math.log(given.peak) if given.peak else -math.inf
    expected = forced | ((found >= level) & allowed)
    near = (found - level).abs() <= NEAR
    assert torch.equal(kept | near, expected | near)
    assert near.float().mean() < 0.05
