"""XAttention: antidiagonal sums stand for blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Problem, Rule, block_sums, fewest_reaching, masked_softmax


@dataclass(frozen=True)
class XAttention(Rule):
    """Per query block, the fewest key blocks that reach ``tau`` of the antidiagonal scores.

    Every ``stride`` x ``stride`` cell of the score matrix is scored by the sum along its antidiagonal,
    softmax runs over the cells, and blocks sum their cells. The first and the diagonal block are always
    kept and counted first. Defaults: stride 8, tau 0.95 (published: per-head tables, mean .76 to .91).
    Source: arXiv 2503.16428, repository mit-han-lab/x-attention (``find_blocks_chunked``).
    """

    name: ClassVar[str] = "xattention"
    stride: int = 8
    tau: float = 0.95

    def blocks(self, problem: Problem) -> Tensor:
        mass = antidiagonal_mass(problem, self.stride)
        forced = (problem.first_blocks | problem.window(1)) & problem.allowed
        rest = torch.where(forced, 0, mass)
        held = torch.where(forced, mass, 0).sum(-1, keepdim=True, dtype=torch.float64)
        needed = self.tau * mass.sum(-1, keepdim=True, dtype=torch.float64) - held
        return forced | fewest_reaching(rest, 1.0, total=needed)


def antidiagonal_mass(problem: Problem, stride: int) -> Tensor:
    """Softmax mass of every block estimated from antidiagonals, fp32 [B, Hq, n_query_blocks,
    n_key_blocks].

    Cell (a, c) is the sum of q[a S + S - 1 - r] . k[c S + r] over r, scaled by 1 / S; it takes part if
    its last row's position reaches its first key. Raises ValueError unless ``stride`` divides both block
    sizes.
    """
    if problem.block_q % stride or problem.block_k % stride:
        raise ValueError(
            f"'stride' must divide block_q ({problem.block_q}) and block_k ({problem.block_k}), got {stride}"
        )
    query = _folded(problem.query, stride).flip(-2).flatten(-2)  # [B, Hq, q cells, S * D]
    key = problem.key
    if problem.valid_keys is not None:
        key = torch.where(problem.valid_keys[:, None, :, None], key, 0)
    key = _folded(key, stride).flatten(-2)
    q_cells, k_cells = query.shape[-2], key.shape[-2]
    last_row = (torch.arange(q_cells, device=problem.device) + 1) * stride - 1
    position = last_row.clamp(max=problem.q_len - 1) + problem.q_offset
    visible = torch.arange(k_cells, device=problem.device) * stride <= position[:, None]
    if problem.valid_keys is not None:
        has_key = block_sums(problem.valid_keys.float(), stride, -1) > 0
        visible = visible & has_key[:, None, None]
    cells = (problem.block_q // stride, problem.block_k // stride)
    parts = []
    for part in problem.row_chunks(q_cells, cells[0], columns=k_cells):
        # What the last row may see, in whole blocks.
        last = min(part.stop * stride, problem.q_len) - 1 + problem.q_offset
        stop = min((max(last, 0) // problem.block_k + 1) * cells[1], k_cells)
        scores = problem.scores(query[:, :, part], key[:, :, :stop], problem.scale / stride)
        weights = masked_softmax(scores, visible[..., part, :stop])
        mass = block_sums(block_sums(weights, cells[1], -1), cells[0], -2)
        parts.append(torch.nn.functional.pad(mass, (0, problem.n_key_blocks - mass.shape[-1])))
    return torch.cat(parts, -2)


def _folded(x: Tensor, stride: int) -> Tensor:
    """[B, H, S, D] to [B, H, ceil(S / stride), stride, D], padded with zeros."""
    missing = -x.shape[2] % stride
    return torch.nn.functional.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, stride))
