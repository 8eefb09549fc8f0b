"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..defaults import LANDMARK_GROUPS
from ..shared import eager as shared
from ..shared.blocks import pack_bits
from ..shared.eager import grouped_product, with_sinks
from ..shared.forced import forced_blocks
from ..shared.grid import Grid
from ..shared.rows import block_stops, row_ends
from ..shared.visibility import allowed_blocks, visible_blocks
from .op import Arguments

if TYPE_CHECKING:
    from ..select_peaks.op import Arguments as PeakArguments


def select_adaptive(a: Arguments) -> Tensor:
    blocks = AdaptiveBlocks(a)
    kept = blocks.forced | (blocks.squared_shares() >= a.tau * a.tau)
    stops = block_stops(blocks.ends, a.query.shape[2], a.block_q)
    return pack_bits(kept & allowed_blocks(Grid.of(a), blocks.visible, stops)[:, None])


def most_of_groups(scores: Tensor) -> Tensor:
    """Of scores [..., members, n_key_blocks] the mean's, then the largest of every group of landmarks."""
    landmarks = scores[..., 1:, :]
    groups = range(min(LANDMARK_GROUPS, landmarks.shape[-2]))
    largest = [landmarks[..., group::LANDMARK_GROUPS, :].amax(-2) for group in groups]
    return torch.stack((scores[..., 0, :], *largest), -2)


class AdaptiveBlocks:
    """The blocks of one attention: which are forced, and what the rows are estimated to give the others."""

    def __init__(self, a: Arguments | PeakArguments) -> None:
        self.query, self.key, self.scale = a.query, a.key, a.scale
        self.block_q, self.block_k, self.sinks = a.block_q, a.block_k, a.sinks
        self.representatives, self.log_weights, self.spreads = a.representatives, a.log_weights, a.spreads
        grid, device = Grid.of(a), a.query.device
        self.n_key_blocks = grid.n_key_blocks
        self.first, self.last = grid.query_block_positions(device)
        self.ends = row_ends(a.key_segment, grid.q_len, grid.q_offset, device, grid.q_stride, grid.block_q)
        self.own = self.first // grid.block_k  # from this key block on, keys are scored exactly
        self.valid = None if a.key_segment is None else a.key_segment == 0  # [B|1, Sk]
        self.visible = visible_blocks(a.key_segment, grid.block_k)
        key_block = torch.arange(grid.n_key_blocks, device=device)
        self.exact = key_block >= self.own[:, None]  # [n_query_blocks, n_key_blocks]
        forced = forced_blocks(grid, a.forced, self.visible, self.ends, device)
        self.forced = forced[:, None]  # [B|1, 1, n_query_blocks, n_key_blocks]

    def squared_shares(self) -> Tensor:
        """Squared shares of keys, summed over rows, fp32 [B, Hq, n_query_blocks, n_key_blocks]; exact: 0."""
        group = self.query.shape[1] // self.key.shape[1]
        members = self.representatives.shape[2:4]
        flat = self.representatives.flatten(2, 3).float().transpose(-1, -2)
        log_weights, spreads = (
            x.repeat_interleave(group, 1)[:, :, None] for x in (self.log_weights, self.spreads)
        )
        spreads = spreads[..., :1, :]  # landmarks have none
        numbers = log_weights[..., :1, :].clamp(min=0)  # logs, of the keys that exist
        parts = []
        counts = self._counted_rows()
        for rows, blocks in self._chunks(flat.shape[-1]):
            query = self.query[:, :, rows].float() * self.scale
            scores = self._scores(rows, flat).unflatten(-1, members) + log_weights
            scores = most_of_groups(scores)  # [B, Hq, rows, 1 + groups, n_key_blocks]
            half_norm = 0.5 * query.square().sum(-1)[..., None, None]
            boosts = torch.minimum(half_norm * spreads, numbers)
            scores[..., :1, :] += boosts
            exact = self.exact[blocks].repeat_interleave(self.block_q, 0)[: query.shape[2]]
            scores = scores.masked_fill(exact[:, None], -torch.inf)
            total = torch.logaddexp(scores.logsumexp((-1, -2)), self._exact_log_sum(query, blocks))
            total = with_sinks(total, self.sinks)
            total = total[..., None, None]
            doubled = 2 * (scores - total)
            doubled[..., :1, :] += (2 * boosts - numbers).clamp(max=0)
            squares = torch.exp(doubled).sum(-2)
            squares = torch.where((total[..., 0] > -torch.inf) & counts[:, None, rows, None], squares, 0)
            missing = -query.shape[2] % self.block_q
            squares = torch.nn.functional.pad(squares, (0, 0, 0, missing)).unflatten(2, (-1, self.block_q))
            parts.append(squares.sum(3))
        shape = (*self.query.shape[:2], self.first.numel(), self.n_key_blocks)
        return torch.cat(parts, 2) if parts else self.query.new_zeros(shape, dtype=torch.float32)

    def _counted_rows(self) -> Tensor:
        """Bool [B|1, Sq]: the row is one that its query block is chosen for."""
        q_len = self.query.shape[2]
        stops = block_stops(self.ends, q_len, self.block_q).repeat_interleave(self.block_q, 1)[:, :q_len]
        return torch.arange(q_len, device=stops.device) < stops

    def _scores(self, rows: slice, representatives: Tensor) -> Tensor:
        """[B, Hq, rows, columns] for representatives [B, Hkv, D, columns], of which each is a column."""
        return grouped_product(self.query[:, :, rows].float() * self.scale, representatives)

    def _chunks(self, columns: int) -> list[tuple[slice, slice]]:
        """Rows whose scores fit in ``shared.SCORE_BYTES`` and their query blocks."""
        batch, heads, q_len, _ = self.query.shape
        if batch == 0 or self.n_key_blocks == 0:
            return []
        columns = max(columns, self._reach * self.block_k)
        step = max(shared.SCORE_BYTES // (4 * batch * heads * columns) // self.block_q, 1)
        n_query_blocks = self.first.numel()
        return [
            (slice(at * self.block_q, min((at + step) * self.block_q, q_len)), slice(at, at + step))
            for at in range(0, n_query_blocks, step)
        ]

    @property
    def _reach(self) -> int:
        """Key blocks that hold positions of a query block's rows, at most."""
        return (self.block_q - 1) // self.block_k + 2

    def _exact_log_sum(self, query: Tensor, blocks: slice) -> Tensor:
        """Log of the mass of the keys in a query block's own key blocks for scaled rows, [B, Hq, rows]."""
        first, last = self.first[blocks], self.last[blocks]
        near = self.own[blocks][:, None] + torch.arange(self._reach, device=query.device)
        near = torch.where((near >= 0) & (near <= (last // self.block_k)[:, None]), near, -1)[None]
        index = near[..., None] * self.block_k + torch.arange(self.block_k, device=query.device)
        exists = ((near >= 0)[..., None] & (index < self.key.shape[2])).flatten(2)
        index = torch.where(exists, index.flatten(2), 0)  # [B|1, blocks, keys]
        if self.valid is not None:
            valid = self.valid.expand(max(self.valid.shape[0], index.shape[0]), -1)
            index, exists = (x.expand(valid.shape[0], -1, -1) for x in (index, exists))
            exists = exists & valid.gather(1, index.flatten(1)).reshape(index.shape)
        position = first[:, None] + torch.arange(self.block_q, device=query.device)
        hidden = ~exists[:, :, None] | (
            index[:, :, None] > position[..., None]
        )  # [B|1, blocks, block_q, keys]
        missing = -query.shape[2] % self.block_q
        by_block = torch.nn.functional.pad(query, (0, 0, 0, missing)).unflatten(2, (-1, self.block_q))
        batch, kv_heads, _, dim = self.key.shape
        flat = index.expand(batch, -1, -1).flatten(1)[:, None, :, None].expand(-1, kv_heads, -1, dim)
        keys = self.key.gather(2, flat).unflatten(2, index.shape[1:]).float()
        scores = grouped_product(
            by_block.transpose(1, 2).flatten(0, 1), keys.transpose(1, 2).flatten(0, 1).transpose(-1, -2)
        )
        scores = scores.unflatten(0, (batch, -1)).masked_fill(hidden[:, :, None], -torch.inf)
        return scores.logsumexp(-1).transpose(1, 2).flatten(2)[..., : query.shape[2]]
