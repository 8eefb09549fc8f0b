"""Which rank holds which rows, and that rows and logits come back in order."""

import pytest
import torch

from sa_compile.distributed.layout import Layout, in_order, is_shard_mask, shard_mask
from sa_compile.kernels.shared.shapes import row_positions


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 100, 129])
def test_rows_are_dealt_out_in_runs_and_come_back(length, ranks):
    layout, row = Layout(length, ranks, 16), torch.arange(1, length + 1)
    parts = [layout.of_rank(row, 0, rank) for rank in range(ranks)]
    assert {len(part) for part in parts} == {layout.rows_of_a_rank}
    assert torch.equal(in_order(torch.stack(parts), 0, 16)[:length], row)
    for rank, part in enumerate(parts):
        rows = layout.rows(rank)
        assert torch.equal(part[:rows], row_positions(torch.arange(rows), rank * 16, ranks, 16) + 1)
        assert not part[rows:].any()
    for position in range(length):
        rank, at = layout.place(position)
        assert parts[rank][at] == position + 1


def test_a_shard_mask_is_known_as_one_and_says_what_is_padding():
    device = torch.device("cpu")
    padded = shard_mask(torch.tensor([[0, 1, 1], [1, 1, 1]]), 3, device)
    assert is_shard_mask(padded) and padded.tolist() == [[[[-1, 0, 0]]], [[[0, 0, 0]]]]
    whole = shard_mask(torch.ones(2, 3), 3, device)
    assert is_shard_mask(whole) and whole.shape == (0, 1, 1, 3)
    assert not is_shard_mask(padded.bool()) and not is_shard_mask(None)
    with pytest.raises(ValueError, match=r"must be \[B, 3\], 0 for padding, or None, got \[2, 4\]"):
        shard_mask(torch.ones(2, 4), 3, device)
