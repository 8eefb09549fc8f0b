"""The oracle in float64, to be read beside docs/accuracy.md. Slow on purpose.

``squared_shares`` gives what ``select_adaptive`` compares with tau squared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..defaults import LANDMARK_GROUPS
from ..shared.grid import Grid
from ..shared.reference import blocks_of_rows, causal_entries, prompt_ends, rows_of_block, with_sink
from .op import Arguments


def exact_product(query: Tensor, stand_ins: Tensor, exists: Tensor, common: Tensor) -> Tensor:
    """Products [rows, members, blocks] of query rows [rows, D] and representatives [members, blocks, D]."""
    return torch.einsum("rd,mbd->rmb", query, stand_ins)


def byte_product(query: Tensor, stand_ins: Tensor, exists: Tensor, common: Tensor) -> Tensor:
    """As the Hopper kernel rounds: a row's numbers to 127ths of the largest, and those of a block's members.

    The latter less ``common`` [D], the mean of the head's first block, whose product is exact. ``exists``
    [members, blocks]. Factors and differences are fp32; what is to be rounded is exact.
    """

    def rounded(numbers: Tensor, largest: Tensor) -> Tensor:
        factor = torch.where(largest > 0, 127.0 / largest.float(), 0.0).double()
        return (numbers * factor).round() * (largest / 127.0)

    rows = rounded(query, query.abs().amax(-1, keepdim=True))
    differences = (stand_ins.float() - common.float()).double().masked_fill(~exists[..., None], 0.0)
    differences = rounded(differences, differences.abs().amax((0, 2), keepdim=True))
    return exact_product(rows, differences, exists, common) + (query @ common)[:, None, None]


Product = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def most_of_groups(scores: Tensor) -> Tensor:
    """Of scores [rows, members, blocks] the mean's, and the largest of landmarks 1, 4, ..; 2, 5, ..; 3, .."""
    groups = [scores[:, first::LANDMARK_GROUPS] for first in range(1, 1 + LANDMARK_GROUPS)]
    return torch.stack((scores[:, 0], *(group.amax(1) for group in groups if group.shape[1])), 1)


def squared_shares(a: Arguments, product: Product = exact_product) -> tuple[Tensor, Tensor, Tensor]:
    """Per block, its keys' squared estimated shares, summed over keys and rows.

    float64 [B, Hq, n_query_blocks, n_key_blocks], and two bool of that shape: forced, allowed. Blocks
    from the one of the query block's first row on are scored exactly and have no share here. A representative
    of n keys with spread s stands for scores of a normal distribution of variance |q|^2 s: their mean
    exponential is exp(variance / 2) times that of the mean, but of n keys at most n times; and their squares
    sum to exp(variance) / n of their sum's square, but to no more than all of it. Of three groups of
    landmarks, a row counts of each the one it looks for most.
    """
    (batch, heads, q_len, _), device = a.query.shape, a.query.device
    group, grid = heads // a.key.shape[1], Grid.of(a)
    shape = (batch, heads, grid.n_query_blocks, grid.n_key_blocks)
    squares = torch.zeros(shape, dtype=torch.float64, device=device)
    forced, allowed = (torch.zeros_like(squares, dtype=torch.bool) for _ in range(2))
    for b, end in enumerate(prompt_ends(a.key_segment, batch, q_len, a.q_offset, a.q_stride, a.block_q)):
        for i in range(grid.n_query_blocks):
            rows = rows_of_block(i, a.block_q, q_len, end)
            own = grid.positions(rows.start) // a.block_k  # key block of the first row
            reached, near = blocks_of_rows(grid, a.forced, a.key_segment, b, rows, end)
            allowed[b, :, i, reached] = True
            forced[b, :, i, near] = True
            far = [j for j in reached if j < own]
            at = torch.tensor(rows, device=device)
            visible = causal_entries(a, b, at)[0]
            visible[:, : max(own, 0) * a.block_k] = False
            for h in range(heads):
                unscaled = a.query[b, h, at].double()
                q = a.scale * unscaled
                exact = q @ a.key[b, h // group].double().nan_to_num().T
                exact = exact.masked_fill(~visible, -torch.inf)
                half_norm = 0.5 * q.square().sum(-1)
                if not far:
                    continue
                stand_ins = a.representatives[b, h // group][:, far].double()  # [members, far, D]
                weight = a.log_weights[b, h // group][:, far].double()
                number = weight.clamp(min=0)  # log of the keys that exist
                spread = a.spreads[b, h // group][:, far].double()
                boost = torch.minimum(half_norm[:, None, None] * spread, number)  # [rows, members, far]
                common = a.representatives[b, h // group, 0, 0].double()
                products = product(unscaled, stand_ins, weight > -torch.inf, common)
                scores = most_of_groups(a.scale * products + weight + boost)
                unequal = torch.zeros_like(scores)  # log of the sum of squares by the square of the sum
                unequal[:, 0] = (2 * boost - number)[:, 0].clamp(max=0)  # a landmark is one key
                total = torch.logsumexp(torch.cat((scores.flatten(1), exact), -1), -1)[:, None, None]
                total = with_sink(total, a.sinks, h)
                shares = torch.where(total > -torch.inf, (scores - total).exp(), 0.0)
                squares[b, h, i, far] = (unequal.exp() * shares.square()).sum((0, 1))
    return squares, forced, allowed


def select_adaptive(a: Arguments, product: Product = exact_product) -> Tensor:
    """Bool [B, Hq, n_query_blocks, n_key_blocks]: forced, or the attention in it has a 2-norm of tau."""
    squares, forced, allowed = squared_shares(a, product)
    return forced | ((squares >= a.tau**2) & allowed)
