"""The same forced blocks for every rule, for comparisons like for like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Problem, Rule


@dataclass(frozen=True)
class Forced(Rule):
    """A rule with the sink block (``sink``) and ``window_blocks`` block diagonals added to what it keeps."""

    name: ClassVar[str] = "forced"
    rule: Rule
    sink: bool = True
    window_blocks: int = 2

    def blocks(self, problem: Problem) -> Tensor:
        kept = self.rule.blocks(problem) | problem.window(self.window_blocks)
        return kept | problem.first_blocks if self.sink else kept

    @property
    def means_dropped(self) -> bool:  # type: ignore[override]
        return self.rule.means_dropped

    @property
    def spec(self) -> str:
        return f"{self.rule.spec}{'+sink' if self.sink else ''}+w{self.window_blocks}"


def forced(rule: Rule, *, sink: bool = True, window_blocks: int = 2) -> Forced:
    """``rule`` with SampleAttention's forced blocks: the sink block and ``window_blocks`` block diagonals."""
    return Forced(rule, sink, window_blocks)
