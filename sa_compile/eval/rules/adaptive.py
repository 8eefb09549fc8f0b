"""Method C: B's strips, plus for each query block the key blocks that one of its rows looks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Problem, Rule, block_sums
from .sample import Chunked


@dataclass(frozen=True)
class Adaptive(Rule):
    """A block is kept if one row of the query block is estimated to give it ``tau`` of its attention.

    Every key block is represented by the means of ``means`` equal runs of keys and by its ``landmarks``
    keys of largest norm; all queries are scored against those. What is forced (the sink block and ``window``
    block diagonals) is scored exactly, and so is the total that a row's shares refer to. ``alpha`` > 0
    adds B's strips at that alpha (``chunk_n`` chunks, 128 rows each). Unlike a sum over a block's rows,
    the largest row does not lose what a single row looks for. Source: ours; docs/accuracy.md.
    """

    name: ClassVar[str] = "adaptive"
    tau: float = 0.2
    means: int = 1
    landmarks: int = 16
    alpha: float = 0.0
    chunk_n: int = 2
    window: int = 2

    def blocks(self, problem: Problem) -> Tensor:
        kept = (self.row_shares(problem) >= self.tau) | problem.first_blocks | problem.window(self.window)
        if self.alpha:
            kept = kept | Chunked(alpha=self.alpha, chunk_n=self.chunk_n, window=1).blocks(problem)
        return kept

    def row_shares(self, problem: Problem) -> Tensor:
        """The largest estimated share of a row, fp32 [B, Hq, n_query_blocks, n_key_blocks]; forced: 0."""
        if problem.block_k % self.means or not 0 <= self.landmarks <= problem.block_k:
            raise ValueError(
                f"'means' must divide block_k ({problem.block_k}) and 'landmarks' be at most that, "
                f"got {self.means} and {self.landmarks}"
            )
        keys, weights = self._representatives(problem)
        each = keys.shape[2] // problem.n_key_blocks
        far = problem.allowed & ~(problem.first_blocks | problem.window(self.window))
        parts = []
        for rows in problem.row_chunks(problem.q_len, problem.block_q, columns=keys.shape[2]):
            blocks = slice(rows.start // problem.block_q, -(-rows.stop // problem.block_q))
            scores = problem.scores(problem.query[:, :, rows], keys, problem.scale)
            scores = (scores + weights[:, :, None]).unflatten(-1, (-1, each)).logsumexp(-1)
            visible = far[:, :, blocks].repeat_interleave(problem.block_q, 2)[:, :, : scores.shape[2]]
            scores = scores.masked_fill(~visible, -torch.inf)  # [B, Hq, rows, n_key_blocks]
            total = torch.logaddexp(scores.logsumexp(-1), self._forced_logsumexp(problem, rows))
            shares = torch.exp(scores - total[..., None]).nan_to_num_(0.0)
            missing = -shares.shape[2] % problem.block_q
            shares = torch.nn.functional.pad(shares, (0, 0, 0, missing))
            parts.append(shares.unflatten(2, (-1, problem.block_q)).amax(3))
        return torch.cat(parts, 2)

    def _representatives(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Keys that stand for the blocks, [B, Hkv, n_key_blocks * m, D], and the log of their weights."""
        missing = -problem.k_len % problem.block_k
        key = torch.nn.functional.pad(problem.key.float(), (0, 0, 0, missing))
        valid = torch.ones((1, problem.k_len), dtype=torch.bool, device=problem.device)
        if problem.valid_keys is not None:
            valid = problem.valid_keys
        valid = torch.nn.functional.pad(valid, (0, missing))[:, None].expand(-1, key.shape[1], -1)
        key = torch.where(valid[..., None], key, 0)
        run = problem.block_k // self.means
        count = block_sums(valid.float(), run, -1)
        means = block_sums(key, run, -2) / count.clamp(min=1)[..., None]
        by_block = (-1, self.means)
        norm = torch.where(valid, key.norm(dim=-1), -1.0).unflatten(-1, (-1, problem.block_k))
        norm, order = norm.topk(self.landmarks, -1)
        marks = key.unflatten(2, (-1, problem.block_k)).gather(
            3, order[..., None].expand(*order.shape, key.shape[-1])
        )
        keys = torch.cat((means.unflatten(2, by_block), marks), 3).flatten(2, 3)
        mark_weight = torch.where(norm >= 0, 0.0, -torch.inf)
        weights = torch.cat(
            (count.log().unflatten(-1, by_block).expand(*order.shape[:3], -1), mark_weight), -1
        )
        return keys, weights.flatten(2).repeat_interleave(problem.heads // key.shape[1], 1)

    def _forced_logsumexp(self, problem: Problem, rows: slice) -> Tensor:
        """Log of the exact mass of the forced blocks, [B, Hq, rows]; the rows start a query block."""
        first, last = problem.row_positions
        blocks = torch.arange(
            rows.start // problem.block_q, -(-rows.stop // problem.block_q), device=first.device
        )
        low = first[blocks] // problem.block_k - self.window + 1
        reach = self.window + (problem.block_q - 1) // problem.block_k + 1
        near = low[:, None] + torch.arange(reach, device=first.device)  # [blocks, reach]
        near = torch.where((near >= 0) & (near <= (last[blocks] // problem.block_k)[:, None]), near, -1)
        sink = problem.first_blocks[:, 0, 0].long().argmax(-1)  # [B|1]
        # A sink block inside the window is already counted there.
        apart = torch.where((near == sink[:, None, None]).any(-1), -1, sink[:, None])  # [B|1, blocks]
        chosen = torch.cat((near.expand(len(sink), -1, -1), apart[..., None]), -1)  # [B|1, blocks, reach + 1]
        index = chosen[..., None] * problem.block_k + torch.arange(problem.block_k, device=first.device)
        exists = (chosen >= 0)[..., None] & (index < problem.k_len)
        index = torch.where(exists, index, 0).flatten(2)  # [B|1, blocks, keys]
        exists = exists.flatten(2)
        if problem.valid_keys is not None:
            valid = problem.valid_keys.expand(len(exists), -1)
            exists = exists & valid.gather(1, index.flatten(1)).reshape(index.shape)
        keys = _gathered(problem.key, index)
        query = problem.query[:, :, rows]
        missing = -query.shape[2] % problem.block_q
        query = torch.nn.functional.pad(query, (0, 0, 0, missing)).unflatten(2, (-1, problem.block_q))
        position = first[blocks][:, None] + torch.arange(problem.block_q, device=first.device)
        hidden = ~exists[:, :, None] | (
            index[:, :, None] > position[..., None]
        )  # [B|1, blocks, block_q, keys]
        scores = problem.scores(
            query.transpose(1, 2).flatten(0, 1), keys.transpose(1, 2).flatten(0, 1), problem.scale
        )
        scores = scores.unflatten(0, (problem.batch, -1)).masked_fill(hidden[:, :, None], -torch.inf)
        total = scores.logsumexp(-1).transpose(1, 2).flatten(2)  # [B, Hq, rows]
        return total[..., : rows.stop - rows.start]


def _gathered(key: Tensor, index: Tensor) -> Tensor:
    """Keys [B, Hkv, blocks, n, D] at index [B|1, blocks, n] of key [B, Hkv, Sk, D]."""
    batch, heads, _, depth = key.shape
    flat = index.expand(batch, -1, -1).flatten(1)[:, None, :, None].expand(-1, heads, -1, depth)
    return key.gather(2, flat).unflatten(2, index.shape[1:])
