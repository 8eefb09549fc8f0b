"""Masks that no predicate describes: not proven, with the reason and the node that stopped the proof."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.mask_graphs import capture, proofs
from torch import Tensor

from sa_compile.passes.mask.predicate import NotProven

BATCH, HEADS, LENGTH, HEAD_DIM = 2, 2, 9, 4
MIN = torch.finfo(torch.float32).min

Build = Callable[..., Tensor]


def rows() -> Tensor:
    return torch.arange(LENGTH)[:, None]


def columns() -> Tensor:
    return torch.arange(LENGTH)[None, :]


def causal() -> Tensor:
    return columns() <= rows()


def refuse(build: Build, *extra: Tensor) -> NotProven:
    """Why the mask that ``build(*extra)`` makes is not proven."""

    def attention(query: Tensor, *extra: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, query, query, attn_mask=build(*extra))

    (proof,) = proofs(capture(attention, torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM), *extra))
    assert isinstance(proof, NotProven), f"proven as {proof}"
    assert proof.node is not None
    return proof


CONDITIONS = [
    pytest.param(lambda: (rows() - columns()).abs() < 3, "abs", id="bidirectional window, abs"),
    pytest.param(lambda: columns() > rows() - 3, "window that is not causal", id="window without causality"),
    pytest.param(lambda: causal() & (columns() > rows() + 1), "hold no key", id="empty window"),
    pytest.param(lambda: columns() >= rows(), "window that is not causal", id="anti-causal"),
    pytest.param(lambda: causal() | (columns() < 3), "choice", id="prefix"),
    pytest.param(lambda: causal() | (columns() // 3 == rows() // 3), "choice", id="causal or same block"),
    pytest.param(lambda: columns() // 3 <= rows() // 3, "not k <= q", id="blockwise causal"),
    pytest.param(lambda: causal() & ((rows() - columns()) % 2 == 0), "understood", id="strided"),
    pytest.param(lambda: columns() == rows(), "equality", id="diagonal"),
    pytest.param(lambda: columns() != rows(), "differ", id="all but the diagonal"),
    pytest.param(lambda: 2 * columns() <= rows(), "not k <= q", id="2k <= q"),
    pytest.param(lambda: causal() & (rows() < 5), "rows of the query", id="query rows masked"),
    pytest.param(
        lambda: torch.zeros(LENGTH, LENGTH, dtype=torch.bool), "allows nothing", id="nothing allowed"
    ),
    pytest.param(lambda: columns() <= rows().flip(0), "flip", id="reversed rows"),
    pytest.param(
        lambda: columns() <= rows() * torch.arange(HEADS)[:, None, None], "head", id="depends on the head"
    ),
    pytest.param(lambda: (columns() // 3 == rows() // 4) & causal(), "two sizes", id="chunks of two sizes"),
    pytest.param(
        lambda: (columns() // 3 == (rows() + 1) // 3) & causal(), "other positions", id="shifted chunks"
    ),
    pytest.param(lambda: torch.rand(LENGTH, LENGTH) < 0.5, "rand", id="random"),
]


@pytest.mark.parametrize(("build", "reason"), CONDITIONS)
def test_conditions(build: Build, reason: str) -> None:
    assert reason in str(refuse(build))


BIASES = [
    pytest.param(lambda: torch.where(causal(), 0.0, -1e9), "-1e+09", id="-1e9"),
    pytest.param(lambda: torch.where(causal(), 0.0, -1e4), "-10000", id="-1e4"),
    pytest.param(lambda: torch.where(causal(), 1.0, MIN), "entries of 1", id="allowed entries of 1"),
    pytest.param(lambda: causal().float(), "entries of 1", id="the truth value as a float"),
    pytest.param(lambda: torch.where(causal(), 0.0, MIN) / 2, "neither 0", id="half of finfo.min"),
    pytest.param(lambda: torch.where(causal(), (columns() - rows()) * 0.5, MIN), "bias", id="ALiBi"),
    pytest.param(lambda: torch.where(causal(), torch.randn(LENGTH, LENGTH), MIN), "randn", id="random bias"),
]


@pytest.mark.parametrize(("build", "reason"), BIASES)
def test_biases(build: Build, reason: str) -> None:
    proof = refuse(build)
    assert proof.reason.startswith("bias") and reason in proof.reason


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_mask_that_is_an_input(dtype: torch.dtype) -> None:
    proof = refuse(lambda mask: mask, torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=dtype))
    assert proof.reason == "the mask is an input of the graph"
    assert proof.node is not None and proof.node.op == "placeholder"


def test_input_mask_joined_with_a_proven_one() -> None:
    proof = refuse(lambda mask: mask & causal(), torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool))
    assert proof.reason == "the mask is an input of the graph"


def test_relative_bias_names_its_table() -> None:
    table = torch.randn(32, HEADS)
    proof = refuse(lambda table: F.embedding(columns() + rows(), table).permute(2, 0, 1), table)
    assert "embedding" in proof.reason and proof.node is not None and "embedding" in proof.node.name


def test_integer_padding_that_need_not_be_0_or_1_is_no_additive_mask() -> None:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    proof = refuse(lambda mask: (1.0 - mask[:, None, None, :].float()) * MIN, mask)
    assert "mul" in proof.reason


def test_token_types_that_see_each_other() -> None:
    types = torch.randint(0, 2, (BATCH, LENGTH))
    proof = refuse(lambda t: causal() | (t[:, None, :, None] == t[:, None, None, :]), types)
    assert "choice" in proof.reason


def test_both_query_and_key_padding() -> None:
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    proof = refuse(lambda v: v[:, None, None, :] & v[:, None, :, None], valid)
    assert "rows of the query" in proof.reason


def test_offset_that_is_a_tensor_of_more_than_one_number() -> None:
    assert "not k <= q" in str(
        refuse(lambda start: columns() <= rows() + start[:, None], torch.arange(LENGTH))
    )


def test_positions_without_their_segments() -> None:
    ids = torch.arange(LENGTH).expand(BATCH, -1)
    assert "not k <= q" in str(refuse(lambda x: x[:, None, None, :] <= x[:, None, :, None], ids))


def test_segments_whose_steps_are_not_one() -> None:
    ids = torch.arange(LENGTH).expand(BATCH, -1)

    def build(ids: Tensor) -> Tensor:
        segment = (torch.diff(ids, prepend=ids[:, :1] - 1, dim=-1) != 2).cumsum(-1)
        same = segment[:, None, :, None] == segment[:, None, None, :]
        return same & (ids[:, None, None, :] <= ids[:, None, :, None])

    assert "not k <= q" in str(refuse(build, ids))


def test_mixed_masking_of_rows_that_may_be_empty() -> None:
    """A key that only one of two masks excludes is at finfo.min, one that both exclude at -inf."""
    valid = torch.rand(BATCH, LENGTH) < 0.7

    def build(valid: Tensor) -> Tensor:
        return torch.where(causal(), 0.0, MIN) + torch.where(valid[:, None, None, :], 0.0, MIN)

    assert "differ in rows without keys" in str(refuse(build, valid))


def test_unknown_operation_is_named_with_its_node() -> None:
    proof = refuse(lambda: torch.sort(columns(), dim=-1, descending=True)[0] <= rows())
    assert proof.node is not None and "sort" in proof.reason
