"""What the oracles share, in float64: the mask, kept entries, a prompt's rows, masses of key blocks.

Slow on purpose. Rows are taken a few at a time, so that 16K tokens fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .forced import Forced
from .grid import Grid
from .record import CausalRows, Masked
from .shapes import row_positions

ROWS_AT_A_TIME = 256


def visible_entries(
    rows: Tensor,
    kv_len: int,
    *,
    causal: bool,
    q_offset: int | Tensor = 0,
    window: int = 0,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
) -> Tensor:
    """The mask predicate, bool [B|1, rows, Sk]: may row i (position ``rows[i] + q_offset``) see key k?

    ``q_offset`` is one number, or one for each of ``rows``.
    """
    position = (rows + q_offset)[:, None]
    key = torch.arange(kv_len, device=rows.device)
    visible = torch.ones(1, rows.numel(), kv_len, dtype=torch.bool, device=rows.device)
    if causal:
        visible = visible & (key <= position)
    if window > 0:
        visible = visible & (key > position - window)
    row_id = torch.zeros_like(rows)[None] if query_segment is None else query_segment[:, rows]
    key_id = torch.zeros_like(key)[None] if key_segment is None else key_segment
    return visible & (key_id >= 0)[:, None, :] & (key_id[:, None, :] == row_id[:, :, None])


def kept_entries(block_mask: Tensor, rows: Tensor, kv_len: int, block_q: int, block_k: int) -> Tensor:
    """Bool [B|1, Hq|1, rows, Sk]: is the bit of the block of (row, key) set?"""
    key_block = torch.arange(kv_len, device=rows.device) // block_k
    words = block_mask[:, :, rows // block_q][..., key_block // 32]
    return (words >> (key_block % 32).to(torch.int32)) & 1 == 1


def row_offsets(a: CausalRows | Masked, rows: Tensor) -> int | Tensor:
    """What is added to rows for their positions; in records without a ``q_stride`` they are contiguous."""
    stride, block_q = getattr(a, "q_stride", 1), getattr(a, "block_q", 1)
    return a.q_offset + rows // block_q * ((stride - 1) * block_q)


def prompt_ends(
    key_segment: Tensor | None, batch: int, q_len: int, q_offset: int, q_stride: int = 1, block_q: int = 1
) -> list[int]:
    """Of every batch entry, the row behind its last one whose own key is not padding; 0 if all are."""
    ends = []
    for b in range(batch):
        ids = [] if key_segment is None else key_segment[b % key_segment.shape[0]].tolist()
        position = [row_positions(row, q_offset, q_stride, block_q) for row in range(q_len)]
        own = [row for row, p in enumerate(position) if not 0 <= p < len(ids) or ids[p] == 0]
        ends.append(own[-1] + 1 if own else 0)
    return ends


def rows_of_block(i: int, block_q: int, q_len: int, end: int) -> range:
    """The rows that a query block is chosen for: none behind the end of a prompt that ends in it."""
    rows = range(i * block_q, min((i + 1) * block_q, q_len))
    return range(rows.start, end) if end in rows[1:] else rows


def sampled_rows(end: int, chunk_n: int, sample_rows: int) -> list[int]:
    """The last ``sample_rows`` rows of each of ``chunk_n`` equal chunks of the rows before a prompt's end."""
    edges = [g * end // chunk_n for g in range(chunk_n + 1)]
    return [
        row
        for begin, end in zip(edges, edges[1:], strict=False)
        for row in range(max(begin, end - sample_rows), end)
    ]


def row_groups(rows: Tensor) -> Iterator[Tensor]:
    yield from rows.split(ROWS_AT_A_TIME)


def block_masses(a: CausalRows, block_k: int, b: int, rows: list[int]) -> Iterator[tuple[int, Tensor]]:
    """For every sampled row of batch entry b, its causal attention per key block: [Hq, n_key_blocks]."""
    query, keys = a.query[b], repeat_heads(a.key[b : b + 1], a.query.shape[1] // a.key.shape[1])[0]
    for part in row_groups(torch.tensor(rows, dtype=torch.int64, device=query.device)):
        visible = causal_entries(a, b, part)
        scores = a.scale * query[:, part].double() @ keys.transpose(-1, -2)
        scores = scores.masked_fill(~visible, -torch.inf)
        weights = torch.softmax(scores, -1).masked_fill(~visible, 0.0)
        weights = torch.where(visible.any(-1, keepdim=True), weights, 0.0)
        mass = torch.stack([block.sum(-1) for block in weights.split(block_k, -1)], -1)
        for at, row in enumerate(part.tolist()):
            yield row, mass[:, at]


def masked_entries(a: Masked, rows: Tensor) -> Tensor:
    """:func:`visible_entries` of a record."""
    return visible_entries(
        rows,
        a.key.shape[2],
        causal=a.causal,
        q_offset=row_offsets(a, rows),
        window=a.window,
        query_segment=a.query_segment,
        key_segment=a.key_segment,
    )


def causal_entries(a: CausalRows, b: int, rows: Tensor) -> Tensor:
    """What rows of batch entry b may see, bool [1, rows, Sk]."""
    segment = segment_of(a.key_segment, b)
    offsets = row_offsets(a, rows)
    return visible_entries(rows, a.key.shape[2], causal=True, q_offset=offsets, key_segment=segment)


def segment_of(segment: Tensor | None, b: int) -> Tensor | None:
    """Of a segment tensor [B|1, S] what is batch entry b's, [1, S]."""
    return None if segment is None else segment[b % segment.shape[0]][None]


def blocks_of_rows(
    grid: Grid, forced: Forced, key_segment: Tensor | None, b: int, rows: range, end: int
) -> tuple[list[int], list[int]]:
    """Key blocks that a query block's rows may keep, and those that they must, in batch entry b.

    May: some row reaches a valid key of it. Must: the prompt's first such block, diagonals, and all that the
    rows may keep if one of them is among the last before the prompt's ``end``.
    """
    segment = segment_of(key_segment, b)
    ids = [0] * grid.kv_len if segment is None else segment[0].tolist()
    size, own = grid.block_k, grid.positions(rows[0]) // grid.block_k
    visible = [j for j in range(grid.n_key_blocks) if 0 in ids[j * size : (j + 1) * size]]
    allowed = [j for j in visible if j * size <= grid.positions(rows[-1])]
    if any(end - forced.last_rows <= row < end for row in rows):
        return allowed, allowed
    sinks = visible[:1] if forced.keep_sink else []
    return allowed, [j for j in allowed if own - j < forced.window_slashes or j in sinks]


def with_sink(log_sum: Tensor, sinks: Tensor | None, head: int) -> Tensor:
    """Log-sum-exps of rows over keys and the head's sink; -inf, of a row that sees no key, stays."""
    if sinks is None:
        return log_sum
    sink = sinks[head % len(sinks)].double()
    return torch.where(log_sum > -torch.inf, torch.logaddexp(log_sum, sink), log_sum)


def packed(kept: Tensor) -> Tensor:
    """An index, int32 [..., n_words], of bool [..., n_key_blocks]."""
    n_key_blocks = kept.shape[-1]
    words = torch.zeros(*kept.shape[:-1], max(2, -(-n_key_blocks // 32)), dtype=torch.int64)
    for j in range(n_key_blocks):
        words[..., j // 32] |= kept[..., j].cpu().long() << (j % 32)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return words.to(torch.int32).to(kept.device)


def repeat_heads(x: Tensor, group: int) -> Tensor:
    """[B, Hkv, S, D] to float64 [B, Hq, S, D]: each KV head serves ``group`` consecutive query heads."""
    return x.double().repeat_interleave(group, 1)
