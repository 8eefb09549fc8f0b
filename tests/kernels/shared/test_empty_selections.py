"""Selections by landmarks of nothing: no batch entries, no rows, or no keys."""

import pytest
import torch
from support.implementations import eager
from support.query_stride import Ops

from sa_compile.kernels import ops


@pytest.mark.parametrize("run", [Ops(), eager], ids=["op", "eager"])
@pytest.mark.parametrize("op", ["select_adaptive", "select_peaks"])
@pytest.mark.parametrize("empty", ["batch", "rows", "keys"])
def test_nothing_to_select_from_gives_an_empty_index(run, op, empty):
    query, key = torch.zeros(2, 4, 40, 8), torch.zeros(2, 2, 40, 8)
    if empty == "batch":
        query, key = query[:0], key[:0]
    query = query[:, :, :0] if empty == "rows" else query
    key = key[:, :, :0] if empty == "keys" else key
    terms = ops.block_representatives(key, block_k=16, landmarks=2)
    dirt = [torch.full((2, 4, 3, 2), -1, dtype=torch.int32) for _ in range(8)]
    del dirt  # what memory holds that nobody writes
    found = getattr(run, op)(query, key, *terms, None, 1.0, 0, 16, 16, 0.2, True, 2, 0)
    assert found.shape == (query.shape[0], 4, -(-query.shape[2] // 16), 2)
    assert not found.any()
