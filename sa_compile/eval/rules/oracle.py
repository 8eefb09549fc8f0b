"""The oracle: what any rule that keeps whole blocks could at best know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Problem, Rule, all_block_mass, fewest_reaching


@dataclass(frozen=True)
class Oracle(Rule):
    """Per query block, the fewest key blocks that hold ``alpha`` of the exact attention of its rows.

    Needs the full scores: a bound to compare with, not a method. Source: the definition of SD(alpha), arXiv
    2406.15486 section 3, at block granularity.
    """

    name: ClassVar[str] = "oracle"
    alpha: float = 0.95

    def blocks(self, problem: Problem) -> Tensor:
        return fewest_reaching(all_block_mass(problem), self.alpha)
