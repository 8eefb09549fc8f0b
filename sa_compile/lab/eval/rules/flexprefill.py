"""FlexPrefill: vertical-slash from the last rows, or pooled per-block scores where those fit the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sa_compile.kernels.shared.blocks import slash_blocks
from sa_compile.kernels.shared.shapes import ceil_div

from .base import Problem, Rule, block_sums, masked_softmax
from .minference import diagonal_sums


@dataclass(frozen=True)
class FlexPrefill(Rule):
    """Columns and slashes that reach ``gamma`` in the last query block, or a query-aware block choice.

    Where the pooled estimate of the last block's attention is close to the true one (Jensen-Shannon
    distance below ``tau``), blocks are taken from the pooled scores of all query blocks until ``gamma``
    of their sum is reached. ``min_budget`` tokens of columns and of slashes are kept at least; short
    inputs are dense. Defaults: the strong rows of its tables. Source: arXiv 2502.20766, repository
    bytedance/FlexPrefill.
    """

    name: ClassVar[str] = "flexprefill"
    gamma: float = 0.95
    tau: float = 0.1
    min_budget: int = 512

    def blocks(self, problem: Problem) -> Tensor:
        if problem.kv_len <= max(2 * problem.block_q, self.min_budget):
            return ~problem.none()
        rows = slice(max(problem.q_len - problem.block_q, 0), problem.q_len)
        mass = problem.probabilities(rows)
        count = rows.stop - rows.start
        column = mass.sum(-2) / count
        slash = diagonal_sums(mass, rows.start + problem.q_offset) / count
        column_block = block_sums(column, problem.block_k, -1)
        slash_block = block_sums(slash, problem.block_k, -1)
        query_aware = self._is_query_aware(problem, column_block)  # [B, Hq, 1]

        least = ceil_div(self.min_budget, problem.block_k)
        column_count = torch.where(query_aware, least, self._count(column, problem.block_k).clamp(min=least))
        slash_count = torch.where(query_aware, least, self._count(slash, problem.block_k).clamp(min=least))
        columns = _top(column_block, column_count)
        slashes = _top(slash_block, slash_count)
        sizes = (problem.q_len, problem.kv_len, problem.q_offset, problem.block_q, problem.block_k)
        kept = columns.unsqueeze(-2) | slash_blocks(slashes, *sizes)
        return kept | (query_aware[..., None] & self._pooled_choice(problem))

    def _count(self, score: Tensor, block_k: int) -> Tensor:
        """How many blocks the tokens that reach gamma would fill, [B, Hq, 1]."""
        cumulated = score.sort(dim=-1, descending=True).values.double().cumsum(-1)
        return ((cumulated <= self.gamma).sum(-1, keepdim=True) + 1) // block_k + 1

    def _is_query_aware(self, problem: Problem, column_block: Tensor) -> Tensor:
        last = problem.query[:, :, max(problem.q_len - problem.block_q, 0) :].float().mean(-2, keepdim=True)
        scores = problem.scores(last, problem.mean_keys(), problem.scale)
        estimate = masked_softmax(scores, problem.allowed[:, :, -1:])[:, :, 0]
        return jensen_shannon(estimate, column_block).sqrt()[..., None] < self.tau

    def _pooled_choice(self, problem: Problem) -> Tensor:
        """Blocks in descending order of pooled attention, over the whole head, up to gamma of the sum."""
        scores = problem.scores(problem.mean_queries(), problem.mean_keys(), problem.scale)
        mass = masked_softmax(scores, problem.allowed)
        flat, order = mass.flatten(-2).sort(dim=-1, descending=True, stable=True)
        keep = flat.double().cumsum(-1) <= self.gamma * mass.sum((-1, -2), dtype=torch.float64)[..., None]
        return torch.zeros_like(keep).scatter(-1, order, keep).reshape(mass.shape)


def _top(score: Tensor, count: Tensor) -> Tensor:
    """Bool, shape of score [..., n]: the ``count`` [..., 1] largest entries, the first one always."""
    score = score.clone()
    score[..., 0] = torch.inf
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < count


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence (natural log) of distributions over the last dimension."""
    middle = (p + q) / 2

    def to_middle(x: Tensor) -> Tensor:
        return torch.where(x > 0, x * (x.clamp(min=1e-30) / middle.clamp(min=1e-30)).log(), 0).sum(-1)

    return ((to_middle(p) + to_middle(q)) / 2).clamp(min=0)
