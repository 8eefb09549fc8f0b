"""FlashPrefill V1: every query against block means of the keys, thresholded relative to the best block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Problem, Rule, block_sums


@dataclass(frozen=True)
class FlashPrefill(Rule):
    """Per query block, the key blocks whose pooled score is at least ``alpha`` of the best block's.

    A query scores a block's mean key if it stands at or behind the block's last key; a query block sums
    exp(score - the block row's maximum) over its rows. The first ``sink`` blocks, ``window`` block
    diagonals and all blocks of the last ``last_full`` query blocks are always kept. Default alpha:
    published for Llama-3.1-8B. Source: arXiv 2603.06199 (V1).
    """

    name: ClassVar[str] = "flashprefill"
    alpha: float = 0.18
    sink: int = 2
    window: int = 4
    last_full: int = 2

    def blocks(self, problem: Problem) -> Tensor:
        score = self._scores(problem)
        best = score.amax(-1, keepdim=True)
        kept = (score >= self.alpha * best) & (score > 0)
        key_block = torch.arange(problem.n_key_blocks, device=problem.device)
        query_block = torch.arange(problem.n_query_blocks, device=problem.device)
        dense = query_block >= problem.n_query_blocks - self.last_full
        return kept | (key_block < self.sink) | problem.window(self.window) | dense[:, None]

    def _scores(self, problem: Problem) -> Tensor:
        """fp32 [B, Hq, n_query_blocks, n_key_blocks]; 0 where no row of the block may score."""
        means = problem.mean_keys()
        last_key = (torch.arange(problem.n_key_blocks, device=problem.device) + 1) * problem.block_k
        last_key = last_key.clamp(max=problem.kv_len) - 1
        parts = []
        for rows in problem.row_chunks(problem.q_len, problem.block_q, columns=problem.n_key_blocks):
            position = torch.arange(rows.start, rows.stop, device=problem.device) + problem.q_offset
            valid = (position[:, None] >= last_key) & problem.valid_blocks[:, None, None]
            scores = problem.scores(problem.query[:, :, rows], means, problem.scale)
            scores.masked_fill_(~valid, -torch.inf)
            tiles = scores.amax(-1)  # [B, Hq, rows]
            missing = -tiles.shape[-1] % problem.block_q
            tiles = torch.nn.functional.pad(tiles, (0, missing), value=-torch.inf)
            top = tiles.unflatten(-1, (-1, problem.block_q)).amax(-1)
            # Where no row of a block may score, all its weights are exp(-inf - 0).
            top = torch.where(top > -torch.inf, top, 0)
            top = top.repeat_interleave(problem.block_q, -1)[..., : scores.shape[-2], None]
            parts.append(block_sums(scores.sub_(top).exp_(), problem.block_q, -2))
        return torch.cat(parts, -2)
