"""What select_budget and select_budget_rest find, against their oracles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sa_compile.kernels.select_budget import reference
from sa_compile.kernels.select_budget.op import Arguments
from sa_compile.kernels.select_budget_rest import reference as rest_reference
from sa_compile.kernels.select_budget_rest.op import Arguments as RestArguments
from sa_compile.kernels.shared import blocks


def near_a_bound(arguments: Arguments, tolerance: float) -> Tensor:
    """Blocks of which a number is nearly at its bound, [B, Hq, n_query_blocks, n_key_blocks]."""
    budget, tau = arguments.budget, arguments.tau
    grown, squares, _, _ = reference.growths(arguments)
    near = (grown - budget**2).abs() <= tolerance * budget**2
    return near | ((squares - tau**2).abs() <= tolerance * tau**2)


def assert_equals_the_oracle(kept: Tensor, arguments: Arguments) -> None:
    """But for blocks of which a number is nearly at its bound; there are few."""
    expected, near = reference.select_budget(arguments), near_a_bound(arguments, 1e-3)
    assert torch.equal(kept | near, expected | near)
    assert near.float().mean() < 0.02


def assert_rest_equals_the_oracle(
    found: Sequence[Tensor], arguments: RestArguments, near: float = 1e-3, atol: float = 1e-5
) -> Tensor:
    """Likewise, and the rest of what is left out then; returns what is kept, as bool."""
    mask, *rest = found
    n_key_blocks = -(-arguments.key.shape[2] // arguments.block_k)
    kept, given = (blocks.unpack_bits(x, n_key_blocks) for x in (mask, arguments.block_mask))
    *_, allowed = reference.growths(arguments.of_budget)
    expected = reference.select_budget(arguments.of_budget) | (given & allowed)
    bounds = near_a_bound(arguments.of_budget, near) & allowed
    assert torch.equal(kept | bounds, expected | bounds)
    exact = rest_reference.rest_of(arguments, allowed & ~kept)
    for tensor, wanted in zip(rest, exact, strict=True):
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=atol)
    return kept
