"""What select_budget keeps, against its oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from sa_compile.kernels.select_budget import reference
from sa_compile.kernels.select_budget.op import Arguments


def assert_equals_the_oracle(kept: Tensor, arguments: Arguments) -> None:
    """But for blocks of which a number is nearly at its bound; there are few."""
    budget, tau = arguments.budget, arguments.tau
    grown, squares, _, _ = reference.growths(arguments)
    expected = reference.select_budget(arguments)
    near = (grown - budget**2).abs() <= 1e-3 * budget**2
    near |= (squares - tau**2).abs() <= 1e-3 * tau**2
    assert torch.equal(kept | near, expected | near)
    assert near.float().mean() < 0.02
