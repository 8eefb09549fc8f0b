"""What select_budget keeps, against its oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from sa_compile.kernels.select_budget import reference


def assert_equals_the_oracle(kept: Tensor, before: tuple, budget: float, tau: float, after: tuple) -> None:
    """But for blocks of which a number is nearly at its bound; there are few.

    ``before`` and ``after``: the op's arguments around ``budget`` and ``tau``.
    """
    grown, squares, _, _ = reference.growths(*before, *after)
    expected = reference.select_budget(*before, budget, tau, *after)
    near = (grown - budget**2).abs() <= 1e-3 * budget**2
    near |= (squares - tau**2).abs() <= 1e-3 * tau**2
    assert torch.equal(kept | near, expected | near)
    assert near.float().mean() < 0.02
