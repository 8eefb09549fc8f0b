"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..defaults import PEAK_BLOCKS
from ..select_adaptive.eager import AdaptiveBlocks
from ..shared.blocks import pack_bits
from ..shared.eager import grouped_product, with_sinks
from ..shared.grid import Grid
from ..shared.rows import block_stops
from ..shared.visibility import allowed_blocks
from .op import Arguments


def select_peaks(a: Arguments) -> Tensor:
    blocks = PeakBlocks(a)
    stops = block_stops(blocks.ends, a.query.shape[2], a.block_q)
    allowed = allowed_blocks(Grid.of(a), blocks.visible, stops)[:, None]
    kept = blocks.forced | (blocks.peaks() >= math.log(a.peak)) if a.peak > 0 else allowed
    return pack_bits((kept & allowed).expand(*a.query.shape[:2], -1, -1))


class PeakBlocks(AdaptiveBlocks):
    """The blocks of one attention: which are forced, and the largest share that a row gives a landmark."""

    def peaks(self) -> Tensor:
        """Logs of the largest shares, fp32 [B, Hq, n_query_blocks, n_key_blocks]; -inf where exact."""
        group = self.query.shape[1] // self.key.shape[1]
        landmarks = self.representatives[:, :, 1:]
        members = landmarks.shape[2:4]
        flat = landmarks.flatten(2, 3).float().transpose(-1, -2)
        exist = self.log_weights[:, :, 1:].repeat_interleave(group, 1)[:, :, None]  # 0, or -inf
        parts = []
        counts = self._counted_rows()
        for rows, blocks in self._chunks(flat.shape[-1]):
            query = self.query[:, :, rows].float() * self.scale
            scores = (self._scores(rows, flat).unflatten(-1, members) + exist).amax(-2)
            total = self._log_totals(query, blocks)[..., None]
            exact = self.exact[blocks].repeat_interleave(self.block_q, 0)[: query.shape[2]]
            counted = counts[:, None, rows, None] & ~exact & (total > -torch.inf)
            shares = torch.where(counted, scores - total, -torch.inf)
            missing = -query.shape[2] % self.block_q
            shares = torch.nn.functional.pad(shares, (0, 0, 0, missing), value=-torch.inf)
            parts.append(shares.unflatten(2, (-1, self.block_q)).amax(3))
        shape = (*self.query.shape[:2], self.first.numel(), self.n_key_blocks)
        return torch.cat(parts, 2) if parts else self.query.new_zeros(shape, dtype=torch.float32)

    def _log_totals(self, query: Tensor, blocks: slice) -> Tensor:
        """Of scaled rows [B, Hq, rows, D] the logs of what they give to all keys, [B, Hq, rows]."""
        own = self.own[blocks].repeat_interleave(self.block_q, 0)[: query.shape[2]]
        total = self._exact_log_sum(query, blocks)
        total = torch.logaddexp(total, self._of_first_block(query, own))
        return with_sinks(torch.logaddexp(total, self._of_normals(query, own)), self.sinks)

    def _of_first_block(self, query: Tensor, own: Tensor) -> Tensor:
        """Log of the mass of the landmarks of the prompt's first block, for rows that have it before them."""
        batch, kv_heads, members, _, dim = self.representatives.shape
        group = self.query.shape[1] // kv_heads
        first = torch.zeros(1, dtype=torch.int64, device=query.device)
        if self.visible is not None:
            first = self.visible.to(torch.int8).argmax(-1)
        at = first.expand(batch)[:, None, None, None]
        exist = self.log_weights.gather(3, at.expand(-1, kv_heads, members, -1))[:, :, 1:, 0]
        at = at[..., None].expand(-1, kv_heads, members, -1, dim)
        marks = self.representatives.gather(3, at)[:, :, 1:, 0].float().transpose(-1, -2)
        scores = grouped_product(query, marks) + exist.repeat_interleave(group, 1)[:, :, None]
        seen = first[:, None] < own  # [B|1, rows]
        return scores.logsumexp(-1).masked_fill(~seen[:, None], -torch.inf)

    def _of_normals(self, query: Tensor, own: Tensor) -> Tensor:
        """Log of the mass of every PEAK_BLOCKS blocks before the rows' own, as normal distributions."""
        group = self.query.shape[1] // self.key.shape[1]
        count = self.n_key_blocks // PEAK_BLOCKS

        def of_eight(of_mean: Tensor) -> Tensor:
            """[B, Hkv, count, PEAK_BLOCKS, ..] of [B, Hkv, n_key_blocks, ..]."""
            return of_mean[:, :, : count * PEAK_BLOCKS].float().unflatten(2, (count, PEAK_BLOCKS))

        means, numbers = of_eight(self.representatives[:, :, 0]), of_eight(self.log_weights[:, :, 0]).exp()
        number = numbers.sum(-1)
        shares = numbers / number.clamp(min=1)[..., None]
        mean = (shares[..., None] * means).sum(3)  # [B, Hkv, count, D]
        apart = (means - mean[:, :, :, None]).square().mean(-1)
        spread = (shares * (of_eight(self.spreads[:, :, 0]) + apart)).sum(-1)
        log_number, spread = (
            x.repeat_interleave(group, 1)[:, :, None] for x in (number.log(), spread)
        )  # [B, Hq, 1, count]
        half_norm = 0.5 * query.square().sum(-1)[..., None]
        boosts = torch.minimum(half_norm * spread, log_number.clamp(min=0))
        scores = grouped_product(query, mean.transpose(-1, -2)) + log_number + boosts
        before = (torch.arange(count, device=query.device) + 1) * PEAK_BLOCKS <= own[:, None]
        return scores.masked_fill(~before, -torch.inf).logsumexp(-1)
