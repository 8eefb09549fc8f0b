"""The oracle in float64. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.reference import visible_entries
from .op import first_row, rows_of_a_block


def growths(
    query: Tensor,
    key: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    block_q: int,
    block_k: int,
    rows: int,
    keep_sink: bool,
    window_slashes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per block, by how much the square of the left-out share grows if it goes, after all smaller ones.

    And the squares of its keys' shares, over ``block_q`` rows. float64 [B, Hq, n_query_blocks,
    n_key_blocks], and two bool of that shape: forced, allowed.
    """
    batch, heads, q_len, _ = query.shape
    k_len, group = key.shape[2], heads // key.shape[1]
    n_query_blocks, n_key_blocks = -(-q_len // block_q), -(-k_len // block_k)
    grown = torch.zeros(batch, heads, n_query_blocks, n_key_blocks, dtype=torch.float64, device=query.device)
    squares = torch.zeros_like(grown)
    forced, allowed = torch.zeros_like(grown, dtype=torch.bool), torch.zeros_like(grown, dtype=torch.bool)
    count = rows_of_a_block(rows, k_len, block_q)
    step = block_q // count
    for b in range(batch):
        segment = None if key_segment is None else key_segment[b % key_segment.shape[0]][None]
        ids = [0] * k_len if segment is None else segment[0].tolist()
        seen = [j for j in range(n_key_blocks) if 0 in ids[j * block_k : (j + 1) * block_k]]
        for i in range(n_query_blocks):
            end = min((i + 1) * block_q, q_len)
            own = (i * block_q + q_offset) // block_k
            visible_blocks = [j for j in seen if j * block_k <= end - 1 + q_offset]
            near = [j for j in visible_blocks if own - j < window_slashes or (keep_sink and j == seen[0])]
            allowed[b, :, i, visible_blocks] = True
            forced[b, :, i, near] = True
            sampled = i * block_q + first_row(i, step) + step * torch.arange(count, device=query.device)
            sampled = sampled.clamp(max=end - 1)
            visible = visible_entries(sampled, k_len, causal=True, q_offset=q_offset, key_segment=segment)[0]
            for h in range(heads):
                scores = scale * (query[b, h, sampled].double() @ key[b, h // group].double().nan_to_num().T)
                weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)[visible.any(-1)]
                share = grown.new_zeros(n_key_blocks)
                if len(weights):
                    parts = weights.split(block_k, -1)
                    share = torch.stack([part.sum(-1).mean() for part in parts])
                    squares[b, h, i] = torch.stack([block_q * part.square().sum(-1).mean() for part in parts])
                for j in set(visible_blocks) - set(near):
                    smaller = [k for k in set(visible_blocks) - set(near) if share[k] < share[j]]
                    grown[b, h, i, j] = share[j] * (share[j] + 2 * share[smaller].sum())
    return grown, squares, forced, allowed


def select_budget(
    query: Tensor,
    key: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    block_q: int,
    block_k: int,
    budget: float,
    tau: float,
    rows: int,
    keep_sink: bool,
    window_slashes: int,
) -> Tensor:
    """Bool [B, Hq, n_query_blocks, n_key_blocks]."""
    where = (key_segment, scale, q_offset, block_q, block_k, rows, keep_sink, window_slashes)
    grown, squares, forced, allowed = growths(query, key, *where)
    return (forced | (grown >= budget**2) | (squares >= tau**2)) & allowed
