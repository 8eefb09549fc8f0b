"""Random masks: whatever is proven is the mask, and what a predicate describes is proven with its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.mask_graphs import assert_predicates_are_the_masks, capture, proofs
from torch import Tensor

from sa_compile.passes.mask.predicate import MaskPredicate

BATCH, HEADS, HEAD_DIM = 2, 2, 4
LAW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)

Term = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [Sq, 1], k [1, Sk], valid [B, Sk] -> bool
small = st.integers(-4, 4)

CAUSAL: list[Callable[[int], Term]] = [
    lambda c: lambda q, k, valid: k <= q + c,
    lambda c: lambda q, k, valid: k < q + (c + 1),
    lambda c: lambda q, k, valid: q + c >= k,
    lambda c: lambda q, k, valid: ~(k - q > c),
    lambda c: lambda q, k, valid: q - k + c > -1,
    lambda c: lambda q, k, valid: torch.ones(q.shape[0], k.shape[1]).tril(c).bool(),
    lambda c: lambda q, k, valid: ~torch.ones(q.shape[0], k.shape[1], dtype=torch.bool).triu(c + 1),
]
LOWER: list[Callable[[int], Term]] = [
    lambda w: lambda q, k, valid: k > q - w,
    lambda w: lambda q, k, valid: q - k < w,
    lambda w: lambda q, k, valid: k >= q - (w - 1),
    lambda w: lambda q, k, valid: torch.ones(q.shape[0], k.shape[1]).triu(1 - w) == 1,
]
OTHERS: list[Callable[[int], Term]] = [
    lambda c: lambda q, k, valid: valid[:, None, None, :],
    lambda c: lambda q, k, valid: k // (abs(c) + 1) == q // (abs(c) + 1),
    lambda c: lambda q, k, valid: (k + c) // 3 == (q + c) // 3,
    lambda c: lambda q, k, valid: k < 3 + abs(c),
    lambda c: lambda q, k, valid: k >= c,
    lambda c: lambda q, k, valid: q >= c,
    lambda c: lambda q, k, valid: valid[:, None, None, : q.shape[0]].all(-1, keepdim=True),
    lambda c: lambda q, k, valid: (k - q).abs() <= abs(c),
    lambda c: lambda q, k, valid: k * 2 <= q + c,
    lambda c: lambda q, k, valid: torch.eye(q.shape[0], k.shape[1]).bool(),
]


def instance(
    kinds: list[Callable[[int], Term]], numbers: st.SearchStrategy[int] = small
) -> st.SearchStrategy[Term]:
    return st.builds(lambda kind, number: kind(number), st.sampled_from(kinds), numbers)


any_term = instance(CAUSAL + LOWER + OTHERS)
combined = st.recursive(
    any_term,
    lambda inner: st.one_of(
        st.builds(lambda a, b: lambda q, k, v: a(q, k, v) & b(q, k, v), inner, inner),
        st.builds(lambda a, b: lambda q, k, v: a(q, k, v) | b(q, k, v), inner, inner),
        st.builds(lambda a: lambda q, k, v: ~a(q, k, v), inner),
        st.builds(
            lambda a, b, c: lambda q, k, v: torch.where(a(q, k, v), b(q, k, v), c(q, k, v)),
            inner,
            inner,
            inner,
        ),
    ),
    max_leaves=4,
)


def check(term: Term, q_len: int, kv_len: int, as_float: bool = False, dynamic: bool = False) -> list[object]:
    """Compile, prove, run, compare; the proofs."""

    def attention(query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
        mask = term(torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None, :], valid)
        if as_float:
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        return F.scaled_dot_product_attention(query, key, key, attn_mask=mask)

    query, key = torch.randn(BATCH, HEADS, q_len, HEAD_DIM), torch.randn(BATCH, HEADS, kv_len, HEAD_DIM)
    captured = capture(attention, query, key, torch.rand(BATCH, kv_len) < 0.6, dynamic=dynamic)
    assert_predicates_are_the_masks(captured)
    return list(proofs(captured))


@LAW
@given(term=combined, q_len=st.integers(2, 7), extra=st.integers(0, 5), as_float=st.booleans())
def test_what_is_proven_is_the_mask(term: Term, q_len: int, extra: int, as_float: bool) -> None:
    check(term, q_len, q_len + extra, as_float)


@LAW
@given(term=combined, q_len=st.integers(3, 7), extra=st.integers(1, 5))
def test_what_is_proven_under_symbolic_sizes_is_the_mask(term: Term, q_len: int, extra: int) -> None:
    check(term, q_len, q_len + extra, dynamic=True)


@dataclass(frozen=True)
class Numbers:
    offset: int
    window: int


@LAW
@given(
    causal=st.sampled_from(CAUSAL),
    lower=st.sampled_from(LOWER),
    numbers=st.builds(Numbers, st.integers(0, 4), st.integers(1, 4)),
    padded=st.booleans(),
    swapped=st.booleans(),
)
def test_causal_windows_are_proven_with_the_right_numbers(
    causal: Callable[[int], Term], lower: Callable[[int], Term], numbers: Numbers, padded: bool, swapped: bool
) -> None:
    offset, window = numbers.offset, numbers.window
    # The window is counted from the position q + offset.
    upper_term, lower_term = causal(offset), lower(window - offset)
    assume(window - offset >= 1 or lower is not LOWER[0])

    def term(q: Tensor, k: Tensor, valid: Tensor) -> Tensor:
        parts = [upper_term(q, k, valid), lower_term(q, k, valid)]
        parts = parts[::-1] if swapped else parts
        mask = parts[0] & parts[1]
        return mask & valid[:, None, None, :] if padded else mask

    (proof,) = check(term, 8, 8 + offset)
    assert isinstance(proof, MaskPredicate), str(proof)
    assert (proof.causal, proof.q_offset, proof.window) == (True, offset, window)
    assert (proof.key_valid is not None) == padded
