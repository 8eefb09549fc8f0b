"""The oracle in float64, to be read beside docs/accuracy.md. Slow on purpose.

``peaks`` gives what ``select_peaks`` compares with the logarithm of ``peak``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..defaults import PEAK_BLOCKS
from ..select_adaptive.reference import Product, exact_product
from ..shared.grid import Grid
from ..shared.reference import blocks_of_rows, causal_entries, prompt_ends, rows_of_block, with_sink
from .op import Arguments


def normals(a: Arguments, b: int, kv_head: int, own: int) -> list[tuple[float, Tensor, float]]:
    """Of every PEAK_BLOCKS key blocks before block ``own``: how many keys, their mean [D], and their spread.

    Landmarks are none of these keys; a spread is the mean of a dimension's variance.
    """
    means = a.representatives[b, kv_head, 0].double()  # [n_key_blocks, D]
    numbers, spreads = a.log_weights[b, kv_head, 0].double().exp(), a.spreads[b, kv_head, 0].double()
    found = []
    for first in range(0, min(own, len(numbers)) - PEAK_BLOCKS + 1, PEAK_BLOCKS):
        blocks = slice(first, first + PEAK_BLOCKS)
        number = float(numbers[blocks].sum())
        if number == 0:
            continue
        share = numbers[blocks] / number
        mean = (share[:, None] * means[blocks]).sum(0)
        apart = (means[blocks] - mean).square().mean(-1)
        found.append((number, mean, float((share * (spreads[blocks] + apart)).sum())))
    return found


def log_totals(a: Arguments, b: int, head: int, rows: Tensor, own: int, first: int) -> Tensor:
    """Logs of what rows of batch entry b give to all keys, [rows]; ``first``: the first block with a key."""
    kv_head = head // (a.query.shape[1] // a.key.shape[1])
    q = a.scale * a.query[b, head, rows].double()
    visible = causal_entries(a, b, rows)[0].clone()
    visible[:, : max(own, 0) * a.block_k] = False
    exact = (q @ a.key[b, kv_head].double().nan_to_num().T).masked_fill(~visible, -torch.inf)
    terms = [exact.logsumexp(-1)]
    if first < own:
        marks = a.representatives[b, kv_head, 1:, first].double()
        terms += [
            q @ mark
            for mark, weight in zip(marks, a.log_weights[b, kv_head, 1:, first], strict=True)
            if weight > -torch.inf
        ]
    half_norm = 0.5 * q.square().sum(-1)
    for number, mean, spread in normals(a, b, kv_head, own):
        boost = (half_norm * spread).clamp(max=math.log(number))  # of so many keys, at most one has it all
        terms.append(q @ mean + math.log(number) + boost)
    return with_sink(torch.stack(terms).logsumexp(0), a.sinks, head)


def peaks(a: Arguments, product: Product = exact_product) -> tuple[Tensor, Tensor, Tensor]:
    """Per block, the log of the largest share that a row gives to a landmark of it; -inf: it has none.

    float64 [B, Hq, n_query_blocks, n_key_blocks], and two bool of that shape: forced, allowed. Blocks from
    the one of the query block's first row on have no share here.
    """
    (batch, heads, q_len, _), device = a.query.shape, a.query.device
    group, grid = heads // a.key.shape[1], Grid.of(a)
    shape = (batch, heads, grid.n_query_blocks, grid.n_key_blocks)
    found = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
    forced, allowed = (torch.zeros_like(found, dtype=torch.bool) for _ in range(2))
    for b, end in enumerate(prompt_ends(a.key_segment, batch, q_len, a.q_offset, a.q_stride, a.block_q)):
        for i in range(grid.n_query_blocks):
            rows = rows_of_block(i, a.block_q, q_len, end)
            own = grid.positions(rows.start) // a.block_k  # key block of the first row
            reached, near = blocks_of_rows(grid, a.forced, a.key_segment, b, rows, end)
            allowed[b, :, i, reached] = True
            forced[b, :, i, near] = True
            far = [j for j in reached if j < own]
            if not far:
                continue
            at = torch.tensor(rows, device=device)
            for h in range(heads):
                total = log_totals(a, b, h, at, own, first=far[0])
                marks = a.representatives[b, h // group, 1:][:, far].double()  # [landmarks, far, D]
                exists = a.log_weights[b, h // group, 1:][:, far] > -torch.inf
                common = a.representatives[b, h // group, 0, 0].double()
                scores = a.scale * product(a.query[b, h, at].double(), marks, exists, common)
                scores = scores.masked_fill(~exists, -torch.inf)
                found[b, h, i, far] = (scores - total[:, None, None]).amax((0, 1))
    return found, forced, allowed


def select_peaks(a: Arguments, product: Product = exact_product) -> Tensor:
    """Bool [B, Hq, n_query_blocks, n_key_blocks]: forced, or a row gives a landmark of it ``peak``."""
    found, forced, allowed = peaks(a, product)
    looked_for = found >= math.log(a.peak) if a.peak > 0 else torch.ones_like(allowed)
    return forced | (looked_for & allowed)
