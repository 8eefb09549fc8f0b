"""Causal masks whose offset is a number that a tensor holds: proven, and read before it is written to."""

import pytest
import torch
import torch.nn.functional as F
from support.mask_graphs import assert_predicates_are_the_masks, capture, proofs

from sa_compile.passes.mask.predicate import NotProven

LENGTH, KEYS, START = 9, 20, 6


def rows(start=0):
    return torch.arange(LENGTH)[:, None] + start


def columns():
    return torch.arange(KEYS)[None]


def attend(query, key, mask):
    return F.scaled_dot_product_attention(query, key, key, attn_mask=mask)


def tensors():
    return torch.randn(2, 2, LENGTH, 4), torch.randn(2, 2, KEYS, 4)


def plain(query, key, start):
    return attend(query, key, columns() <= rows(start))


def then_written(query, key, start):
    mask = columns() <= rows(start)
    start.add_(LENGTH)
    return attend(query, key, mask)


def written_before(query, key, start):
    start.add_(2)
    return attend(query, key, columns() <= rows(start))


def one_behind(query, key, start):
    return attend(query, key, columns() < rows(start) + 2)


def narrow_integers(query, key, start):
    return attend(query, key, columns() <= rows(start.to(torch.int32)))


def first_position(query, key, start):
    positions = torch.stack([start, start + 1])
    return attend(query, key, columns() <= rows(positions[0]))


def padded(query, key, start):
    valid = torch.arange(KEYS) >= torch.tensor([0, 3])[:, None]
    return attend(query, key, (columns() <= rows(start)) & valid[:, None, None])


def window(query, key, start):
    return attend(query, key, (columns() <= rows(start)) & (columns() > rows(start) - 4))


@pytest.mark.parametrize(
    "function",
    [plain, then_written, written_before, one_behind, narrow_integers, first_position, padded, window],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_proven(function, dynamic):
    captured = capture(function, *tensors(), torch.tensor(START), dynamic=dynamic)
    (proof,) = proofs(captured)
    assert not isinstance(proof, NotProven), str(proof)
    assert proof.start is not None and "causal(offset read when it runs)" in str(proof)
    assert assert_predicates_are_the_masks(captured) == 1


def of_each_sequence(query, key, start):
    return attend(query, key, columns() <= rows(start * torch.arange(2)[:, None, None, None]))


def of_each_row(query, key, start):
    return attend(query, key, columns() <= torch.stack([start] * LENGTH)[:, None])


def sum_of_two(query, key, start):
    other = start.clone().mul_(2)
    return attend(query, key, columns() <= rows(start.sin().long()) + rows(other.sin().long()) - rows())


@pytest.mark.parametrize("function", [of_each_sequence, of_each_row, sum_of_two])
def test_more_than_one_number_is_not_proven(function):
    (proof,) = proofs(capture(function, *tensors(), torch.tensor(START)))
    assert isinstance(proof, NotProven)
