"""The oracle in float64, to be read beside docs/accuracy.md. Slow on purpose.

``squared_shares`` gives what ``select_adaptive`` compares with tau squared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..defaults import LANDMARK_GROUPS
from ..shared.reference import (
    prompt_ends,
    rows_of_block,
    visible_entries,
)


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


def squared_shares(
    query: Tensor,
    key: Tensor,
    representatives: Tensor,
    log_weights: Tensor,
    spreads: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    block_q: int,
    block_k: int,
    keep_sink: bool,
    window_slashes: int,
    product: Product = exact_product,
) -> tuple[Tensor, Tensor]:
    """Per block, its keys' squared estimated shares, summed over keys and rows.

    float64 [B, Hq, n_query_blocks, n_key_blocks], and bool of the same shape: the block is forced. Blocks
    from the one of the query block's first row on are scored exactly and have no share here. A representative
    of n keys with spread s stands for scores of a normal distribution of variance |q|^2 s: their mean
    exponential is exp(variance / 2) times that of the mean, but of n keys at most n times; and their squares
    sum to exp(variance) / n of their sum's square, but to no more than all of it. Of three groups of
    landmarks, a row counts of each the one it looks for most.
    """
    batch, heads, q_len, _ = query.shape
    k_len, group = key.shape[2], heads // key.shape[1]
    n_query_blocks, n_key_blocks = -(-q_len // block_q), -(-k_len // block_k)
    squares = torch.zeros(
        batch, heads, n_query_blocks, n_key_blocks, dtype=torch.float64, device=query.device
    )
    forced = torch.zeros_like(squares, dtype=torch.bool)
    for b, end in enumerate(prompt_ends(key_segment, batch, q_len, q_offset)):
        segment = None if key_segment is None else key_segment[b % key_segment.shape[0]][None]
        ids = [0] * k_len if segment is None else segment[0].tolist()
        visible_blocks = [j for j in range(n_key_blocks) if 0 in ids[j * block_k : (j + 1) * block_k]]
        for i in range(n_query_blocks):
            rows = torch.tensor(rows_of_block(i, block_q, q_len, end), device=query.device)
            own = (i * block_q + q_offset) // block_k  # key block of the first row
            last = int(rows[-1]) + q_offset
            allowed = [j for j in visible_blocks if j * block_k <= last]
            near = [j for j in allowed if own - j < window_slashes or (keep_sink and j == visible_blocks[0])]
            forced[b, :, i, near] = True
            far = [j for j in allowed if j < own]
            visible = visible_entries(rows, k_len, causal=True, q_offset=q_offset, key_segment=segment)[0]
            for k in range(k_len):
                if k // block_k < own:
                    visible[:, k] = False
            for h in range(heads):
                unscaled = query[b, h, rows].double()
                q = scale * unscaled
                exact = (q @ key[b, h // group].double().nan_to_num().T).masked_fill(~visible, -torch.inf)
                half_norm = 0.5 * q.square().sum(-1)
                if not far:
                    continue
                stand_ins = representatives[b, h // group][:, far].double()  # [members, far, D]
                weight = log_weights[b, h // group][:, far].double()
                number = weight.clamp(min=0)  # log of the keys that exist
                spread = spreads[b, h // group][:, far].double()
                boost = torch.minimum(half_norm[:, None, None] * spread, number)  # [rows, members, far]
                common = representatives[b, h // group, 0, 0].double()
                products = product(unscaled, stand_ins, weight > -torch.inf, common)
                scores = most_of_groups(scale * products + weight + boost)
                unequal = torch.zeros_like(scores)  # log of the sum of squares by the square of the sum
                unequal[:, 0] = (2 * boost - number)[:, 0].clamp(max=0)  # a landmark is one key
                total = torch.logsumexp(torch.cat((scores.flatten(1), exact), -1), -1)[:, None, None]
                shares = torch.where(total > -torch.inf, (scores - total).exp(), 0.0)
                squares[b, h, i, far] = (unequal.exp() * shares.square()).sum((0, 1))
    return squares, forced


def select_adaptive(
    query: Tensor,
    key: Tensor,
    representatives: Tensor,
    log_weights: Tensor,
    spreads: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    block_q: int,
    block_k: int,
    tau: float,
    keep_sink: bool,
    window_slashes: int,
    last_rows: int,
    product: Product = exact_product,
) -> Tensor:
    """Bool [B, Hq, n_query_blocks, n_key_blocks]: forced, or the attention in it has a 2-norm of tau.

    Forced is also what stands in a query block that holds one of a prompt's last ``last_rows`` rows.
    """
    squares, forced = squared_shares(
        query,
        key,
        representatives,
        log_weights,
        spreads,
        key_segment,
        scale,
        q_offset,
        block_q,
        block_k,
        keep_sink,
        window_slashes,
        product,
    )
    batch, _, n_query_blocks, n_key_blocks = squares.shape
    q_len = query.shape[2]
    allowed = torch.zeros(batch, 1, n_query_blocks, n_key_blocks, dtype=torch.bool, device=query.device)
    for b, end in enumerate(prompt_ends(key_segment, batch, q_len, q_offset)):
        for i in range(n_query_blocks):
            rows = rows_of_block(i, block_q, q_len, end)
            if any(end - last_rows <= row < end for row in rows):
                forced[b, :, i] = True
            for j in range(n_key_blocks):
                keys = slice(j * block_k, (j + 1) * block_k)
                seen = key_segment is None or bool((key_segment[b % key_segment.shape[0], keys] == 0).any())
                allowed[b, 0, i, j] = seen and j * block_k <= rows[-1] + q_offset
    return (forced | (squares >= tau**2)) & allowed
