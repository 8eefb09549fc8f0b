"""The oracle in float64. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.grid import Grid
from ..shared.reference import blocks_of_rows, causal_entries, with_sink
from .op import Arguments, first_row, rows_of_a_block


def growths(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per block, by how much the square of the left-out share grows if it goes, after all smaller ones.

    And the squares of its keys' shares, over ``block_q`` rows. float64 [B, Hq, n_query_blocks,
    n_key_blocks], and two bool of that shape: forced, allowed.
    """
    (batch, heads, q_len, _), device = a.query.shape, a.query.device
    group, block_q = heads // a.key.shape[1], a.block_q
    grid = Grid.of(a)
    shape = (batch, heads, grid.n_query_blocks, grid.n_key_blocks)
    grown = torch.zeros(shape, dtype=torch.float64, device=device)
    squares = torch.zeros_like(grown)
    forced, allowed = torch.zeros_like(grown, dtype=torch.bool), torch.zeros_like(grown, dtype=torch.bool)
    for b in range(batch):
        for i in range(grid.n_query_blocks):
            rows = range(i * block_q, min((i + 1) * block_q, q_len))
            visible_blocks, near = blocks_of_rows(grid, a.forced, a.key_segment, b, rows, q_len)
            allowed[b, :, i, visible_blocks] = True
            forced[b, :, i, near] = True
            sampled = sampled_rows(a, i)
            visible = causal_entries(a, b, sampled)[0]
            for h in range(heads):
                keys = a.key[b, h // group].double().nan_to_num()
                scores = a.scale * (a.query[b, h, sampled].double() @ keys.T)
                scores = scores.masked_fill(~visible, -torch.inf)[visible.any(-1)]
                weights = (scores - with_sink(scores.logsumexp(-1, keepdim=True), a.sinks, h)).exp()
                share = grown.new_zeros(grid.n_key_blocks)
                if len(weights):
                    parts = weights.split(a.block_k, -1)
                    share = torch.stack([part.sum(-1).mean() for part in parts])
                    squares[b, h, i] = torch.stack([block_q * part.square().sum(-1).mean() for part in parts])
                candidates = sorted(set(visible_blocks) - set(near))
                own = share[candidates]
                smaller = torch.where(own < own[:, None], own, 0).sum(-1)
                grown[b, h, i, candidates] = own * (own + 2 * smaller)
    return grown, squares, forced, allowed


def sampled_rows(a: Arguments, query_block: int) -> Tensor:
    """The rows of a query block whose attention is looked at; past a prompt's end its last row, once more."""
    count = rows_of_a_block(a.rows, a.key.shape[2], a.block_q)
    begin, step = query_block * a.block_q, a.block_q // count
    number = Grid.of(a).positions(begin) // a.block_q
    rows = begin + first_row(number, step) + step * torch.arange(count, device=a.query.device)
    return rows.clamp(max=min(begin + a.block_q, a.query.shape[2]) - 1)


def select_budget(a: Arguments) -> Tensor:
    """Bool [B, Hq, n_query_blocks, n_key_blocks]."""
    grown, squares, forced, allowed = growths(a)
    return (forced | (grown >= a.budget**2) | (squares >= a.tau**2)) & allowed
