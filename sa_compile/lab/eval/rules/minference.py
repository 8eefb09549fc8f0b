"""MInference's vertical-slash pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Problem, Rule, block_sums


@dataclass(frozen=True)
class MInference(Rule):
    """The ``vertical`` strongest columns and ``slash`` strongest token diagonals of the last ``rows``
    rows.

    The first 30 columns and the diagonals of the last 100 keys are always kept. The published kernel
    computes 64-row blocks and single columns; here a block is kept if an entry of it is: a superset, more
    density and no less accuracy. ``vertical_share`` and ``slash_share`` of the key length replace the fixed
    budgets if not 0. Defaults: Llama-3.1-8B's published configuration. Source: arXiv 2407.02490,
    ``minference_prefill_kernel`` of microsoft/MInference.
    """

    name: ClassVar[str] = "minference"
    vertical: int = 512
    slash: int = 2048
    vertical_share: float = 0.0
    slash_share: float = 0.0
    rows: int = 64

    def blocks(self, problem: Problem) -> Tensor:
        rows = slice(max(problem.q_len - self.rows, 0), problem.q_len)
        mass = problem.probabilities(rows)
        columns = self._columns(problem, mass.sum(-2))
        offsets = self._offsets(problem, diagonal_sums(mass, rows.start + problem.q_offset))
        column_blocks = block_sums(columns.float(), problem.block_k, -1) > 0
        return column_blocks.unsqueeze(-2) | blocks_of_offsets(problem, offsets)

    def _columns(self, problem: Problem, score: Tensor) -> Tensor:
        """Bool [B, Hq, Sk]: the strongest columns."""
        budget = int(self.vertical_share * problem.kv_len) or self.vertical
        return _strongest(score, forced=30, count=min(problem.kv_len, max(budget, 30)))

    def _offsets(self, problem: Problem, score: Tensor) -> Tensor:
        """Bool [B, Hq, Sk]: the strongest distances between query and key."""
        budget = int(self.slash_share * problem.kv_len) or self.slash
        return _strongest(score, forced=100, count=min(problem.kv_len, max(budget, 50)))


def _strongest(score: Tensor, forced: int, count: int) -> Tensor:
    """Bool, shape of score: the ``count`` largest entries, the first ``forced`` before all others."""
    score = score.clone()
    score[..., :forced] = torch.inf
    _, order = score.topk(count, dim=-1)
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, order, True)


def diagonal_sums(mass: Tensor, first_position: int) -> Tensor:
    """Mass per distance between query and key: [B, Hq, rows, Sk] to fp32 [B, Hq, Sk] (entry o: distance o).

    Row r has position ``first_position + r``; rows behind the last key's position are not expected.
    """
    rows, keys = mass.shape[-2:]
    position = first_position + torch.arange(rows, device=mass.device)
    key_of_distance = position[:, None] - torch.arange(keys, device=mass.device)  # [rows, Sk]
    exists = (key_of_distance >= 0) & (key_of_distance < keys)
    index = key_of_distance.clamp(0, keys - 1).expand_as(mass)
    return torch.where(exists, mass.gather(-1, index), 0).sum(-2)


def blocks_of_offsets(problem: Problem, offsets: Tensor) -> Tensor:
    """Bool [..., n_query_blocks, n_key_blocks]: blocks with an entry at a kept distance, bool [..., Sk]."""
    first, last = problem.row_positions
    key_first = torch.arange(problem.n_key_blocks, device=problem.device) * problem.block_k
    key_last = (key_first + problem.block_k).clamp(max=problem.kv_len) - 1
    # Distances inside block (i, j) run without gap from first_i - key_last_j to last_i - key_first_j.
    low = (first[:, None] - key_last).clamp(0, problem.kv_len)
    high = (last[:, None] - key_first + 1).clamp(0, problem.kv_len)
    count = torch.nn.functional.pad(offsets.long().cumsum(-1), (1, 0))
    return count[..., torch.maximum(low, high)] > count[..., low]
