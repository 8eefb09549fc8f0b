"""The oracle: every op in float64, written to be read beside the paper (arXiv 2406.15486). Slow on purpose.

Functions have the ops' signatures (``ops`` documents the arguments) and return float64 scores. Rows are taken
a few at a time, so that 16K tokens fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS_AT_A_TIME = 256


def visible_entries(
    rows: Tensor,
    k_len: int,
    *,
    causal: bool,
    q_offset: int = 0,
    window: int = 0,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
) -> Tensor:
    """The mask predicate, bool [B|1, rows, Sk]: may row i (position ``rows[i] + q_offset``) see key k?"""
    position = (rows + q_offset)[:, None]
    key = torch.arange(k_len, device=rows.device)
    visible = torch.ones(1, rows.numel(), k_len, dtype=torch.bool, device=rows.device)
    if causal:
        visible = visible & (key <= position)
    if window > 0:
        visible = visible & (key > position - window)
    row_id = torch.zeros_like(rows)[None] if query_segment is None else query_segment[:, rows]
    key_id = torch.zeros_like(key)[None] if key_segment is None else key_segment
    return visible & (key_id >= 0)[:, None, :] & (key_id[:, None, :] == row_id[:, :, None])


def kept_entries(block_mask: Tensor, rows: Tensor, k_len: int, block_q: int, block_k: int) -> Tensor:
    """Bool [B|1, Hq|1, rows, Sk]: is the bit of the block of (row, key) set?"""
    key_block = torch.arange(k_len, device=rows.device) // block_k
    words = block_mask[:, :, rows // block_q][..., key_block // 32]
    return (words >> (key_block % 32).to(torch.int32)) & 1 == 1


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    causal: bool,
    q_offset: int = 0,
    window: int = 0,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention under the predicate, without an index: float64 out [B, Hq, Sq, Dv] and lse [B, Hq, Sq]."""
    results = []
    for rows in _row_groups(torch.arange(query.shape[2], device=query.device)):
        visible = visible_entries(
            rows,
            key.shape[2],
            causal=causal,
            q_offset=q_offset,
            window=window,
            query_segment=query_segment,
            key_segment=key_segment,
        )
        results.append(_attend(query, key, value, rows, visible[:, None], scale))
    return torch.cat([out for out, _ in results], 2), torch.cat([lse for _, lse in results], 2)


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    scale: float,
    causal: bool,
    q_offset: int,
    window: int,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor]:
    """Attention over the visible entries of kept blocks; a row without any gives 0 and lse -inf."""
    results = []
    for rows in _row_groups(torch.arange(query.shape[2], device=query.device)):
        visible = visible_entries(
            rows,
            key.shape[2],
            causal=causal,
            q_offset=q_offset,
            window=window,
            query_segment=query_segment,
            key_segment=key_segment,
        )
        kept = kept_entries(block_mask, rows, key.shape[2], block_q, block_k)
        results.append(_attend(query, key, value, rows, visible[:, None] & kept, scale))
    return torch.cat([out for out, _ in results], 2), torch.cat([lse for _, lse in results], 2)


def block_mean_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor]:
    """Attention over kept blocks, and over the means of dropped ones. Source: docs/accuracy.md.

    Block j of keys is dropped for block i of rows if its bit is not set and every row sees all of it. Its n
    valid keys count as if all were their mean, and the mean of exponentials as what a normal distribution of
    their spread adds to it, at most n times: the whole mass in one key.
    """
    where = (True, q_offset, 0, block_q, block_k)
    out, lse = block_sparse_attention(query, key, value, block_mask, None, key_segment, scale, *where)
    group, k_len = query.shape[1] // key.shape[1], key.shape[2]
    valid = torch.ones(1, k_len, device=key.device) if key_segment is None else key_segment == 0
    for begin in range(0, query.shape[2], block_q):
        rows = slice(begin, begin + block_q)
        scaled = scale * query[:, :, rows].double()
        # Log mass of a part, and the value that it weighs.
        terms = [(lse[:, :, rows].clone(), out[:, :, rows].clone())]
        for first_key in range(0, k_len, block_k):
            keys = slice(first_key, min(first_key + block_k, k_len))
            if keys.stop - 1 > begin + q_offset:
                continue
            own = valid[:, keys].double()
            mean_key, spread = _mean(key[:, :, keys], own)
            mean_value, _ = _mean(value[:, :, keys], own)
            log_count = own.sum(-1).log()[:, None, None]  # [B|1, 1, 1]
            gain = 0.5 * scaled.square().sum(-1) * _repeat(spread, group)
            mass = (scaled * _repeat(mean_key, group)).sum(-1) + log_count + torch.minimum(gain, log_count)
            at = torch.tensor([begin], device=key.device)
            kept = kept_entries(block_mask, at, k_len, block_q, block_k)[..., first_key]  # [B|1, Hq|1, 1]
            terms.append((mass.masked_fill(kept | (log_count < 0), -torch.inf), _repeat(mean_value, group)))
        total = torch.stack([mass for mass, _ in terms]).logsumexp(0)
        weighed = [(mass - total).exp()[..., None] * of for mass, of in terms]
        there = [mass[..., None] > -torch.inf for mass, _ in terms]
        parts = [torch.where(one, part, 0.0) for one, part in zip(there, weighed, strict=True)]
        lse[:, :, rows], out[:, :, rows] = total, torch.stack(parts).sum(0)
    return out, lse


def _mean(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean valid row of x [B, Hkv, n, C], float64 [B, Hkv, 1, C], and the rows' variance [B, Hkv, 1]."""
    rows = valid[:, None, :, None] > 0
    count = valid.sum(-1)[:, None, None, None].clamp(min=1)
    mean = torch.where(rows, x.double(), 0.0).sum(2, keepdim=True) / count
    distance = torch.where(rows, x.double() - mean, 0.0)
    return mean, distance.square().mean(-1).sum(-1, keepdim=True) / count[..., 0]


def prompt_ends(key_segment: Tensor | None, batch: int, q_len: int, q_offset: int) -> list[int]:
    """Of every batch entry, the row behind its last one whose own key is not padding; 0 if all are."""
    ends = []
    for b in range(batch):
        ids = [] if key_segment is None else key_segment[b % key_segment.shape[0]].tolist()
        own = [row for row in range(q_len) if not 0 <= row + q_offset < len(ids) or ids[row + q_offset] == 0]
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


def sample_scores(
    query: Tensor,
    key: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    chunk_n: int,
    sample_rows: int,
    block_k: int,
) -> tuple[Tensor, Tensor]:
    """Mean sampled attention of every key block and block diagonal, over the rows that can see it."""
    n_key_blocks = -(-key.shape[2] // block_k)
    column = torch.zeros(*query.shape[:2], n_key_blocks, dtype=torch.float64, device=query.device)
    slash = torch.zeros_like(column)
    for b, end in enumerate(prompt_ends(key_segment, query.shape[0], query.shape[2], q_offset)):
        column_rows = [0] * n_key_blocks
        slash_rows = [0] * n_key_blocks
        rows = sampled_rows(end, chunk_n, sample_rows)
        for row, mass in _block_masses(query, key, key_segment, scale, q_offset, b, rows, block_k):
            position = row + q_offset
            for j in range(n_key_blocks):
                s = position // block_k - j
                column[b, :, j] += mass[:, j]
                column_rows[j] += position >= j * block_k
                slash_rows[j] += position // block_k >= j
                if 0 <= s < n_key_blocks:
                    slash[b, :, s] += mass[:, j]
        for j in range(n_key_blocks):
            column[b, :, j] /= max(column_rows[j], 1)
            slash[b, :, j] /= max(slash_rows[j], 1)
    return column, slash


def attention_mass(
    query: Tensor,
    key: Tensor,
    block_mask: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    chunk_n: int,
    sample_rows: int,
    block_q: int,
    block_k: int,
) -> Tensor:
    """Smallest share of a sampled row's attention that lies in kept blocks; rows without keys count as 1."""
    smallest = torch.ones(query.shape[:2], dtype=torch.float64, device=query.device)
    first_keys = torch.arange(0, key.shape[2], block_k, device=query.device)
    for b, end in enumerate(prompt_ends(key_segment, query.shape[0], query.shape[2], q_offset)):
        rows = sampled_rows(end, chunk_n, sample_rows)
        for row, mass in _block_masses(query, key, key_segment, scale, q_offset, b, rows, block_k):
            at = torch.tensor([row], device=query.device)
            kept = kept_entries(block_mask, at, key.shape[2], block_q, block_k)[:, :, 0, first_keys]
            share = (mass * kept[b % kept.shape[0]]).sum(-1)
            smallest[b] = torch.minimum(smallest[b], torch.where(mass.sum(-1) > 0, share, 1.0))
    return smallest


def select_blocks(
    column_scores: Tensor,
    slash_scores: Tensor,
    key_segment: Tensor | None,
    q_len: int,
    k_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    alpha_c: float,
    alpha_s: float,
    keep_sink: bool,
    window_slashes: int,
    last_rows: int,
) -> Tensor:
    """Score-based filtering, extended to strips: block by block as the definition reads."""
    batch, heads, n_key_blocks = column_scores.shape
    n_query_blocks = -(-q_len // block_q)
    words = torch.zeros(batch, heads, n_query_blocks, max(2, -(-n_key_blocks // 32)), dtype=torch.int64)
    for b, end in enumerate(prompt_ends(key_segment, batch, q_len, q_offset)):
        visible_blocks = list(range(n_key_blocks))
        if key_segment is not None:
            ids = key_segment[b % key_segment.shape[0]].tolist()
            visible_blocks = [j for j in visible_blocks if 0 in ids[j * block_k : (j + 1) * block_k]]
        for h in range(heads):
            columns = fewest_reaching(column_scores[b, h].tolist(), alpha_c)
            slashes = fewest_reaching(slash_scores[b, h].tolist(), alpha_s)
            for i in range(n_query_blocks):
                rows = rows_of_block(i, block_q, q_len, end)
                whole = any(end - last_rows <= row < end for row in rows)
                positions = [row + q_offset for row in rows]
                for j in visible_blocks:
                    offsets = {p // block_k - j for p in positions}
                    kept = (
                        (alpha_c >= 1 or alpha_s >= 1 or whole)
                        or j in columns
                        or bool(offsets & slashes)
                        or (keep_sink and j == visible_blocks[0])
                        or min(offsets) < window_slashes
                    )
                    if kept and j * block_k <= positions[-1]:
                        words[b, h, i, j // 32] |= 1 << (j % 32)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return words.to(torch.int32).to(column_scores.device)


def fewest_reaching(scores: list[float], alpha: float) -> set[int]:
    """The fewest indices, largest score first (ties: lower index), whose sum reaches alpha of the total."""
    if alpha >= 1:
        return set(range(len(scores)))
    total, before, kept = sum(scores), 0.0, set()
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if not before < alpha * total:
            break
        kept.add(index)
        before += scores[index]
    return kept


def mask_blocks(
    query: Tensor,
    key: Tensor,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    causal: bool,
    q_offset: int,
    window: int,
    block_q: int,
    block_k: int,
) -> Tensor:
    """The blocks with at least one visible entry, exactly (the op may keep more where segments are given)."""
    q_len, k_len = query.shape[2], key.shape[2]
    n_query_blocks, n_key_blocks = -(-q_len // block_q), -(-k_len // block_k)
    blocks = []
    for i in range(n_query_blocks):
        rows = torch.arange(i * block_q, min((i + 1) * block_q, q_len), device=query.device)
        visible = visible_entries(
            rows,
            k_len,
            causal=causal,
            q_offset=q_offset,
            window=window,
            query_segment=query_segment,
            key_segment=key_segment,
        )
        reached = visible.any(1)  # [B|1, Sk]
        blocks.append(
            torch.stack(
                [reached[:, j * block_k : (j + 1) * block_k].any(-1) for j in range(n_key_blocks)], -1
            )
        )
    words = torch.zeros(
        blocks[0].shape[0], 1, n_query_blocks, max(2, -(-n_key_blocks // 32)), dtype=torch.int64
    )
    for i, block_row in enumerate(blocks):
        for j in range(n_key_blocks):
            words[:, 0, i, j // 32] |= block_row[:, j].cpu().long() << (j % 32)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return words.to(torch.int32).to(query.device)


def _row_groups(rows: Tensor) -> Iterator[Tensor]:
    yield from rows.split(ROWS_AT_A_TIME)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, visible: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention of some rows over their visible entries; what is not visible is never multiplied."""
    group = query.shape[1] // key.shape[1]
    scores = scale * query[:, :, rows].double() @ _repeat(key, group).transpose(-1, -2)
    scores = scores.masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().masked_fill(~visible, 0.0)
    values = _repeat(value, group)
    unusable = ~values.isfinite()
    out = weights @ values.masked_fill(unusable, 0.0)
    sees_unusable = visible.expand_as(weights).double() @ unusable.double() > 0
    return out.masked_fill(sees_unusable, torch.nan), lse


def _block_masses(
    query: Tensor,
    key: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    b: int,
    rows: list[int],
    block_k: int,
) -> Iterator[tuple[int, Tensor]]:
    """For every sampled row of batch entry b, its causal attention per key block: [Hq, n_key_blocks]."""
    group = query.shape[1] // key.shape[1]
    query, keys = query[b], _repeat(key[b : b + 1], group)[0]
    if key_segment is not None:
        key_segment = key_segment[b % key_segment.shape[0]][None]
    for part in _row_groups(torch.tensor(rows, dtype=torch.int64, device=query.device)):
        visible = visible_entries(part, key.shape[2], causal=True, q_offset=q_offset, key_segment=key_segment)
        scores = scale * query[:, part].double() @ keys.transpose(-1, -2)
        scores = scores.masked_fill(~visible, -torch.inf)
        weights = torch.softmax(scores, -1).masked_fill(~visible, 0.0)
        weights = torch.where(visible.any(-1, keepdim=True), weights, 0.0)
        mass = torch.stack([block.sum(-1) for block in weights.split(block_k, -1)], -1)
        for at, row in enumerate(part.tolist()):
            yield row, mass[:, at]


def _repeat(x: Tensor, group: int) -> Tensor:
    """[B, Hkv, S, D] to float64 [B, Hq, S, D]: each KV head serves ``group`` consecutive query heads."""
    return x.double().repeat_interleave(group, 1)
