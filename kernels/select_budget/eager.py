"""The op in plain PyTorch, fp32; no host synchronisation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared import eager as shared
from ..shared.blocks import pack_bits
from ..shared.eager import row_weights, with_sinks
from ..shared.forced import forced_blocks
from ..shared.grid import Grid
from ..shared.rows import block_stops
from ..shared.shapes import blocks_of_keys, ceil_div
from ..shared.visibility import allowed_blocks, visible_blocks
from .op import Arguments, first_row, rows_of_a_block


def select_budget(a: Arguments) -> Tensor:
    kept, allowed, _ = kept_blocks(a)
    return pack_bits(kept & allowed)


def kept_blocks(a: Arguments) -> tuple[Tensor, Tensor, Sampled]:
    """Bool [B, Hq, n_query_blocks, n_key_blocks]: what is kept of what is allowed, and that; the shares."""
    grid, device = Grid.of(a), a.query.device
    visible = visible_blocks(a.key_segment, a.block_k)
    rows = torch.full((1,), a.query.shape[2], device=device)
    allowed = allowed_blocks(grid, visible, block_stops(rows, grid.q_len, grid.block_q))
    forced = forced_blocks(grid, a.forced, visible, None, device)
    sampled = block_shares(a)
    candidate = (allowed & ~forced)[:, None]
    kept = forced[:, None] | (growths(torch.where(candidate, sampled.share, 0.0)) >= a.budget * a.budget)
    return kept | (sampled.squares >= a.tau * a.tau), allowed[:, None], sampled


def growths(share: Tensor) -> Tensor:
    """By how much the square of the left-out share grows with each entry [..., n], after all smaller ones."""
    ordered, order = share.sort(-1)
    before = ordered.double().cumsum(-1) - ordered
    return torch.zeros_like(before).scatter(-1, order, ordered * (ordered + 2 * before))


class Sampled(NamedTuple):
    """What the sampled rows that see a key give, fp32."""

    share: Tensor  # of attention, averaged over the rows, [B, Hq, n_query_blocks, n_key_blocks]
    squares: Tensor  # of the keys' shares, as they would sum up over block_q rows like those, likewise
    of_keys: Tensor  # as share, of the attention among keys alone, of which no sink takes any
    level: Tensor  # the mean of the rows' log-sum-exp, [B, Hq, n_query_blocks]; -inf where no row sees a key


def block_shares(a: Arguments) -> Sampled:
    """Of each query block what its sampled rows give each block of keys."""
    batch, heads, q_len, _ = a.query.shape
    grid, kv_len, block_q = Grid.of(a), a.key.shape[2], a.block_q
    n_query_blocks, n_key_blocks = grid.n_query_blocks, grid.n_key_blocks
    count = rows_of_a_block(a.rows, kv_len, block_q)
    step = block_q // count
    block = torch.arange(n_query_blocks, device=a.query.device)
    first = block * block_q
    sampled = (first + first_row(grid.positions(first) // block_q, step))[:, None]
    sampled = sampled + step * torch.arange(count, device=a.query.device)
    last = ((block + 1) * block_q).clamp(max=q_len) - 1
    sampled = torch.minimum(sampled, last[:, None])
    parts: tuple[list[Tensor], ...] = ([], [], [], [])
    at_a_time = max(shared.SCORE_BYTES // (4 * batch * heads * max(kv_len, 1) * count), 1)
    for begin in range(0, n_query_blocks, at_a_time):
        end = min(begin + at_a_time, n_query_blocks)
        # Keys behind the last row are seen by none.
        reach = grid.positions(min(end * block_q, q_len) - 1) + 1
        blocks = min(max(ceil_div(reach, a.block_k), 0), n_key_blocks)
        seen = slice(0, min(blocks * a.block_k, kv_len))
        segment = None if a.key_segment is None else a.key_segment[:, seen]
        reached = a._replace(key=a.key[:, :, seen], key_segment=segment)
        chosen = sampled[begin:end].flatten()[None]
        valid = torch.ones_like(chosen, dtype=torch.bool)
        weights, highest = row_weights(reached, chosen, grid.positions(chosen), valid)
        total = weights.sum(-1, keepdim=True)
        shares = weights / torch.where(total > 0, total, 1)
        of_row = highest + total.log()
        sees = (total > 0).unflatten(2, (end - begin, count))
        rows = sees.sum(3)  # [B, Hq, blocks, 1]
        of_keys, squares = (blocks_of_keys(x, a.block_k).sum(-1) for x in (shares, shares.square()))
        share = of_keys
        if a.sinks is not None:
            left = torch.exp(of_row - with_sinks(of_row.squeeze(-1), a.sinks)[..., None])
            left = torch.where(total > 0, left, 0)
            share, squares = of_keys * left, squares * left.square()
        for part, x, number in ((parts[0], share, 1), (parts[1], squares, block_q), (parts[2], of_keys, 1)):
            by_block = x.unflatten(2, (end - begin, count)).sum(3)
            part.append(F.pad(by_block * number / rows.clamp(min=1), (0, n_key_blocks - blocks)))
        lse = torch.where(sees, of_row.unflatten(2, (end - begin, count)), 0).sum(3)
        parts[3].append(torch.where(rows > 0, lse / rows.clamp(min=1), -torch.inf).squeeze(-1))
    if not parts[0]:
        empty = a.query.new_zeros((batch, heads, 0, n_key_blocks), dtype=torch.float32)
        return Sampled(empty, empty, empty, empty[..., 0])
    return Sampled(*(torch.cat(part, 2) for part in parts))
