"""The oracle: what any rule that keeps whole blocks could at best know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sa_compile.kernels import choice, ops

from .base import HALF, Problem, Rule, block_sums, fewest_reaching


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


def all_block_mass(problem: Problem) -> Tensor:
    """Exact attention mass of every block, fp32 [B, Hq, n_query_blocks, n_key_blocks]."""
    if _runs_in_triton(problem):
        from sa_compile.lab.eval.block_mass import block_mass

        query, key = problem.query, problem.key
        blocks: dict[str, Any] = {
            "q_offset": problem.q_offset,
            "block_q": problem.block_q,
            "block_k": problem.block_k,
        }
        every = ops.mask_blocks(query, key, **blocks)
        _, lse = ops.block_sparse_attention(query, key, key, every, scale=problem.scale, **blocks)
        return block_mass(query, key, lse, scale=problem.scale, **blocks)
    parts = []
    for rows in problem.row_chunks(problem.q_len, problem.block_q):
        keys = min(rows.stop + problem.q_offset, problem.kv_len)
        mass = block_sums(problem.probabilities(rows, keys), problem.block_k, -1)
        mass = block_sums(mass, problem.block_q, -2)
        parts.append(torch.nn.functional.pad(mass, (0, problem.n_key_blocks - mass.shape[-1])))
    return torch.cat(parts, -2)


def _runs_in_triton(problem: Problem) -> bool:
    """Half precision on a GPU without padding, where Triton kernels are asked for."""
    return (
        problem.query.is_cuda
        and problem.query.dtype in HALF
        and problem.valid_keys is None
        and "triton" in choice.preference()
    )
