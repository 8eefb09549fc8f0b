"""The same forced blocks for every rule, for comparisons like for like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sa_compile.kernels.shared.blocks import pack_bits
from sa_compile.methods import Kept

from .base import Problem, Rule


@dataclass(frozen=True)
class Forced(Rule):
    """A rule with blocks added to what it keeps: the sink block (``sink``), ``window_blocks`` block diagonals
    (0: none), and every block of the query blocks that hold the last ``last_rows`` rows."""

    name: ClassVar[str] = "forced"
    rule: Rule
    sink: bool = True
    window_blocks: int = 2
    last_rows: int = 0

    def blocks(self, problem: Problem) -> Tensor:
        return self.rule.blocks(problem) | self._added(problem)

    def _added(self, problem: Problem) -> Tensor:
        """Bool [B|1, 1, n_query_blocks, n_key_blocks]."""
        added = problem.none() | problem.last_rows(self.last_rows)
        if self.window_blocks:
            added = added | problem.window(self.window_blocks)
        return added | problem.first_blocks if self.sink else added

    def keep(self, query: Tensor, key: Tensor, value: Tensor, **where: Any) -> Kept:
        kept = self.rule.keep(query, key, value, **where)
        if kept.rest is not None:
            raise ValueError(
                f"rule {self.spec!r}: blocks cannot be added to a rule that counts what it leaves out; "
                "give it rest=0"
            )
        problem = self.problem(query, key, **where)
        return Kept(kept.block_mask | pack_bits(self._added(problem) & problem.allowed))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, kept: Kept, **where: Any) -> Tensor:
        return self.rule.attend(query, key, value, kept, **where)

    @property
    def spec(self) -> str:
        sink = "+sink" if self.sink else ""
        window = f"+w{self.window_blocks}" if self.window_blocks else ""
        return f"{self.rule.spec}{sink}{window}{f'+last{self.last_rows}' if self.last_rows else ''}"


def forced(rule: Rule, *, sink: bool = True, window_blocks: int = 2, last_rows: int = 0) -> Forced:
    """``rule`` with SampleAttention's forced blocks: the sink block, ``window_blocks`` block diagonals, and
    all blocks of the last ``last_rows`` rows."""
    return Forced(rule, sink, window_blocks, last_rows)
