"""Rules that match queries and keys by locality-sensitive hashes, read at block granularity.

Both papers hash single tokens and gather them; blocks that cover such a set are nearly dense. Here a
block's mean query or mean key is hashed instead, which keeps their rule (what hashes alike attends) on a
block mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sa_compile.kernels.shapes import ceil_div

from .base import Problem, Rule


@dataclass(frozen=True)
class HyperAttention(Rule):
    """Causal HyperAttention: dense halves, sortLSH and sampled blocks in the quadrants below the
    diagonal.

    The sequence is halved until a part holds at most ``min_seq_len`` positions; parts attend densely
    within themselves. In each quadrant left of a halving, query and key blocks are sorted by the
    Gray-code rank of ``projections`` random sign bits and cut into groups of ``group`` tokens; a query
    block keeps the key blocks of its group and ``sample`` tokens' worth of random ones. Defaults: the
    repository's. Source: arXiv 2310.05869, insuhan/hyper-attn ``hyper_attn.py``, ``angular_lsh.py``;
    without its reweighting of sampled keys.
    """

    name: ClassVar[str] = "hyper"
    projections: int = 7
    group: int = 256
    sample: int = 256
    min_seq_len: int = 4096
    seed: int = 0

    def blocks(self, problem: Problem) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn((problem.query.shape[-1], self.projections), generator=generator)
        query_rank = gray_rank(problem.mean_queries() @ directions.to(problem.device))
        key_hash = gray_rank(problem.mean_keys() @ directions.to(problem.device))
        key_rank = key_hash.repeat_interleave(problem.heads // problem.key.shape[1], 1)
        kept = torch.zeros(problem.shape, dtype=torch.bool, device=problem.device)
        # Query block i stands at the key block of its last row.
        _, last = problem.row_positions
        place = (last // problem.block_k).clamp(max=problem.n_key_blocks - 1)
        self._fill(problem, kept, query_rank, key_rank, place, 0, problem.n_key_blocks, generator)
        return kept

    def _fill(
        self,
        problem: Problem,
        kept: Tensor,
        query_rank: Tensor,
        key_rank: Tensor,
        place: Tensor,
        low: int,
        high: int,
        generator: torch.Generator,
    ) -> None:
        """Set the blocks whose queries and keys both lie in key blocks low..high-1."""
        inside = (place >= low) & (place < high)
        if (high - low) * problem.block_k <= self.min_seq_len or high - low < 2:
            kept[:, :, inside, low:high] = True
            return
        middle = low + ceil_div(high - low, 2)
        behind = (place >= middle) & (place < high)
        group = max(self.group // problem.block_k, 1)
        groups = ceil_div(middle - low, group)
        key_group = _rank_order(key_rank[:, :, low:middle]) // group
        rows = behind.nonzero().flatten()
        if rows.numel():
            query_group = _rank_order(query_rank[:, :, rows]) * groups // rows.numel()
            matched = query_group[..., None] == key_group[..., None, :]
            count = min(max(self.sample // problem.block_k, 1), middle - low)
            drawn = torch.randperm(middle - low, generator=generator)[:count].to(kept.device)
            matched[..., drawn] = True
            kept[:, :, rows, low:middle] = matched
        arguments = (problem, kept, query_rank, key_rank, place)
        self._fill(*arguments, low, middle, generator)
        self._fill(*arguments, middle, high, generator)


@dataclass(frozen=True)
class HashSparse(Rule):
    """Query and key blocks that fall into the same of ``buckets`` hash buckets, and the diagonal block.

    A block's bucket is the largest of its mean's products with ``buckets`` / 2 random directions and their
    negatives; ``rounds`` independent hashes are joined. Source: Pagliardini et al., arXiv 2306.01160,
    epfml/dynamic-sparse-flash-attention.
    """

    name: ClassVar[str] = "hashsparse"
    buckets: int = 16
    rounds: int = 1
    seed: int = 0

    def blocks(self, problem: Problem) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        queries, keys = problem.mean_queries(), problem.mean_keys()
        group = problem.heads // problem.key.shape[1]
        kept = problem.window(1)[None, None]
        for _ in range(self.rounds):
            shape = (problem.query.shape[-1], self.buckets // 2)
            directions = torch.randn(shape, generator=generator).to(problem.device)
            query_bucket = _bucket(queries @ directions)
            key_bucket = _bucket(keys @ directions).repeat_interleave(group, 1)
            kept = kept | (query_bucket[..., None] == key_bucket[..., None, :])
        return kept


def gray_rank(projected: Tensor) -> Tensor:
    """Rank [...] of sign bits [..., bits] in the order whose neighbours differ in one bit (Gray code)."""
    bits = projected > 0
    # Gray code to binary: bit b of the rank is the parity of the code's bits from the top down to b.
    parity = bits.flip(-1).long().cumsum(-1).flip(-1) % 2
    weight = 2 ** torch.arange(bits.shape[-1], device=bits.device)
    return (parity * weight).sum(-1)


def _rank_order(rank: Tensor) -> Tensor:
    """Place of every entry [..., n] in the stable order of its rank."""
    return rank.argsort(dim=-1, stable=True).argsort(-1)


def _bucket(projected: Tensor) -> Tensor:
    return torch.cat((projected, -projected), -1).argmax(-1)
