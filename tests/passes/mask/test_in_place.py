"""In-place operations on the way to a mask: understood exactly, or not proven."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.mask_graphs import Captured, assert_predicates_are_the_masks, capture, proofs
from torch import Tensor

from sa_compile.passes.mask.predicate import MaskPredicate, NotProven

BATCH, HEADS, LENGTH, HEAD_DIM = 2, 2, 9, 4
MIN = torch.finfo(torch.float32).min


def run(build: Callable[..., Tensor], *extra: Tensor) -> list[Captured]:
    def attention(query: Tensor, *extra: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, query, query, attn_mask=build(*extra))

    return capture(attention, torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM), *extra)


def causal() -> Tensor:
    return torch.arange(LENGTH)[None, :] <= torch.arange(LENGTH)[:, None]


def masked_fill(mask: Tensor) -> Tensor:
    mask.masked_fill_(~causal(), MIN)
    return mask


def multiplied(mask: Tensor) -> Tensor:
    mask.fill_(MIN)
    mask *= torch.arange(LENGTH)[None, :] > torch.arange(LENGTH)[:, None]
    return mask


def set_slice(mask: Tensor) -> Tensor:
    mask[:, :LENGTH] = mask[:, :LENGTH].masked_fill(~causal(), -torch.inf)
    return mask


def set_everything(mask: Tensor) -> Tensor:
    mask[...] = torch.where(causal(), 0.0, MIN)
    return mask


def copied(mask: Tensor) -> Tensor:
    return mask.copy_(torch.where(causal(), 0.0, MIN))


def overwritten(mask: Tensor) -> Tensor:
    mask.masked_fill_(causal(), 7.0)
    mask.zero_()
    mask.masked_fill_(causal().logical_not_(), MIN)
    return mask


def into_out(mask: Tensor) -> Tensor:
    torch.where(causal(), torch.zeros(()), torch.tensor(MIN), out=mask)
    return mask


@pytest.mark.parametrize(
    "write", [masked_fill, multiplied, set_slice, set_everything, copied, overwritten, into_out]
)
def test_understood(write: Callable[[Tensor], Tensor]) -> None:
    captured = run(lambda: write(torch.zeros(LENGTH, LENGTH)))
    assert [str(p) for p in proofs(captured)] == ["causal"]
    assert assert_predicates_are_the_masks(captured) == 1


def test_a_read_before_the_write_sees_the_old_values() -> None:
    def build() -> Tensor:
        mask = causal()
        before = mask.clone()
        mask.logical_and_(torch.zeros((), dtype=torch.bool))
        return before

    assert [str(p) for p in proofs(run(build))] == ["causal"]


def test_a_row_assigned_later_is_no_longer_causal() -> None:
    def build() -> Tensor:
        mask = causal()
        mask[2] = True
        return mask

    (proof,) = proofs(run(build))
    assert isinstance(proof, NotProven)


VIEWS = [
    pytest.param(lambda mask: mask[:, 3:].fill_(True), id="through a slice"),
    pytest.param(lambda mask: mask.view(-1)[5:7].fill_(True), id="through a view"),
    pytest.param(lambda mask: mask.t().logical_or_(causal()), id="through a transpose"),
    pytest.param(lambda mask: mask.bernoulli_(0.5), id="unknown operation"),
    pytest.param(lambda mask: mask[2:4].copy_(mask[:2]), id="rows copied"),
]


@pytest.mark.parametrize("write", VIEWS)
def test_not_understood(write: Callable[[Tensor], object]) -> None:
    def build() -> Tensor:
        mask = causal()
        write(mask)
        return mask

    (proof,) = proofs(run(build))
    assert isinstance(proof, NotProven) and ("in place" in str(proof) or "in-place" in str(proof))


def test_padding_that_is_written_before_the_attention_is_not_read_late() -> None:
    def build(valid: Tensor) -> Tensor:
        mask = valid[:, None, None, :].clone() & causal()
        valid.zero_()
        return mask

    (proof,) = proofs(run(build, torch.rand(BATCH, LENGTH) < 0.7))
    assert isinstance(proof, NotProven) or proof.key_valid is None or proof.key_valid.op != "placeholder"


def test_writes_after_the_attention_do_not_matter() -> None:
    def attention(query: Tensor, valid: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(query, query, query, attn_mask=valid[:, None, None, :])
        valid.zero_()
        return out

    (proof,) = proofs(
        capture(attention, torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM), torch.rand(BATCH, LENGTH) < 0.7)
    )
    assert isinstance(proof, MaskPredicate) and str(proof) == "key_valid"
