"""Rules that match queries and keys by locality-sensitive hashes, read at block granularity.

Both papers hash single tokens and gather them; blocks that cover such a set are nearly dense. Here a
block's mean query or mean key is hashed instead, which keeps their rule (what hashes alike attends) on a
block mask.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from sa_compile.kernels.shared.shapes import ceil_div

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
        halving = _halving(
            self,
            problem.query.shape[-1],
            problem.n_key_blocks,
            _places(problem),
            problem.block_k,
            problem.device,
        )
        query_rank = gray_rank(problem.mean_queries() @ halving.directions)
        key_hash = gray_rank(problem.mean_keys() @ halving.directions)
        key_rank = key_hash.repeat_interleave(problem.heads // problem.key.shape[1], 1)
        kept = torch.zeros(problem.shape, dtype=torch.bool, device=problem.device)
        for rows, keys in halving.dense:
            kept[:, :, rows, keys] = True
        for rows, keys, drawn in halving.quadrants:
            group = max(self.group // problem.block_k, 1)
            groups = ceil_div(keys.stop - keys.start, group)
            key_group = _rank_order(key_rank[:, :, keys]) // group
            query_group = _rank_order(query_rank[:, :, rows]) * groups // (rows.stop - rows.start)
            kept[:, :, rows, keys] = (query_group[..., None] == key_group[..., None, :]) | drawn
        return kept


@dataclass(frozen=True)
class _Halving:
    """What HyperAttention does whatever the data are: slices of query blocks and of key blocks."""

    directions: Tensor  # fp32 [D, projections]
    dense: tuple[tuple[slice, slice], ...]
    quadrants: tuple[tuple[slice, slice, Tensor], ...]  # with the key blocks that are drawn, bool


def _places(problem: Problem) -> tuple[int, ...]:
    """The key block of every query block's last row, not descending."""
    ends = range(problem.block_q, problem.n_query_blocks * problem.block_q + 1, problem.block_q)
    last = (min(end, problem.q_len) - 1 + problem.q_offset for end in ends)
    return tuple(min(row // problem.block_k, problem.n_key_blocks - 1) for row in last)


@lru_cache(maxsize=8)  # all layers of a model ask for the same, and a copy to the GPU waits for it
def _halving(
    rule: HyperAttention,
    head_dim: int,
    n_key_blocks: int,
    places: tuple[int, ...],
    block_k: int,
    device: torch.device,
) -> _Halving:
    # Drawn on the CPU, so that a seed means the same blocks on every device.
    generator = torch.Generator().manual_seed(rule.seed)
    directions = torch.randn((head_dim, rule.projections), generator=generator)
    dense: list[tuple[slice, slice]] = []
    quadrants: list[tuple[slice, slice, Tensor]] = []

    def fill(low: int, high: int) -> None:
        """The blocks whose queries and keys both lie in key blocks low..high-1."""
        end = bisect_left(places, high)
        if (high - low) * block_k <= rule.min_seq_len or high - low < 2:
            dense.append((slice(bisect_left(places, low), end), slice(low, high)))
            return
        middle = low + ceil_div(high - low, 2)
        begin = bisect_left(places, middle)
        if begin < end:
            count = min(max(rule.sample // block_k, 1), middle - low)
            drawn = torch.zeros(middle - low, dtype=torch.bool)
            drawn[torch.randperm(middle - low, generator=generator)[:count]] = True
            quadrants.append((slice(begin, end), slice(low, middle), drawn.to(device)))
        fill(low, middle)
        fill(middle, high)

    fill(0, n_key_blocks)
    return _Halving(directions.to(device), tuple(dense), tuple(quadrants))


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
        queries, keys = problem.mean_queries(), problem.mean_keys()
        group = problem.heads // problem.key.shape[1]
        kept = problem.window(1)[None, None]
        shape = (problem.query.shape[-1], self.buckets // 2)
        for directions in _directions(self.seed, shape, self.rounds, problem.device):
            query_bucket = _bucket(queries @ directions)
            key_bucket = _bucket(keys @ directions).repeat_interleave(group, 1)
            kept = kept | (query_bucket[..., None] == key_bucket[..., None, :])
        return kept


@lru_cache(maxsize=8)
def _directions(seed: int, shape: tuple[int, int], rounds: int, device: torch.device) -> tuple[Tensor, ...]:
    """Random directions [D, n] of every round, drawn on the CPU (see ``_halving``)."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).to(device) for _ in range(rounds))


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
