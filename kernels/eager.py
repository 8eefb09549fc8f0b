"""The ops in plain PyTorch, fp32: what runs where no native kernel exists. No host synchronisation.

Functions take the schema's arguments in order; ``ops`` documents them. Queries are processed in chunks of
rows, so that the scores held at a time stay below ``SCORE_BYTES``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import pack_bits, slash_blocks, unpack_bits
from .rows import block_stops, blocks_of_last_rows, row_ends, sampled_rows, seen_blocks
from .shapes import ceil_div, query_block_positions

SCORE_BYTES = 128 << 20


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
    batch, heads, q_len, _ = query.shape
    n_key_blocks = ceil_div(key.shape[2], block_k)
    ends = row_ends(key_segment, q_len, q_offset, query.device)
    rows, valid = sampled_rows(ends, chunk_n, sample_rows)
    column = query.new_zeros((batch, heads, n_key_blocks), dtype=torch.float32)
    slash = torch.zeros_like(column)
    key_block = torch.arange(n_key_blocks, device=query.device)
    for part in _row_chunks(query, key, rows.shape[1], 1):
        mass = block_mass(query, key, key_segment, scale, q_offset, rows[:, part], valid[:, part], block_k)
        column += mass.sum(-2)
        own = (rows[:, part] + q_offset) // block_k
        source = own[:, None, :, None] - key_block  # key block of slash s, per row
        exists = (source >= 0) & (source < n_key_blocks)
        source = source.clamp(0, max(n_key_blocks - 1, 0)).expand_as(mass)
        slash += torch.where(exists, mass.gather(-1, source), 0).sum(-2)
    position = (rows + q_offset)[..., None]
    sees_column = (valid[..., None] & (position >= key_block * block_k)).sum(1)[:, None]  # [B|1, 1, n]
    sees_slash = (valid[..., None] & (position // block_k >= key_block)).sum(1)[:, None]
    return column / sees_column.clamp(min=1), slash / sees_slash.clamp(min=1)


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
    device = column_scores.device
    columns = _fewest_reaching(column_scores, alpha_c)
    slashes = _fewest_reaching(slash_scores, alpha_s)
    if alpha_c >= 1 or alpha_s >= 1:
        columns = torch.ones_like(columns)
    visible = visible_blocks(key_segment, block_k)
    sizes = (q_len, k_len, q_offset, block_q, block_k)
    forced = forced_blocks(visible, *sizes, keep_sink, window_slashes, device)
    ends = row_ends(key_segment, q_len, q_offset, device)
    stops = block_stops(ends, q_len, block_q)
    kept = columns[:, :, None] | slash_blocks(slashes, *sizes, stops)
    kept = kept | forced[:, None]
    kept = kept | blocks_of_last_rows(ends, q_len, block_q, last_rows)[:, None, :, None]
    kept = kept & seen_blocks(stops, k_len, q_offset, block_k)[:, None]
    if visible is not None:
        kept = kept & visible[:, None, None]
    return pack_bits(kept)


def visible_blocks(key_segment: Tensor | None, block_k: int) -> Tensor | None:
    """Bool [B|1, n_key_blocks]: the block holds a valid key; None: every block does."""
    return None if key_segment is None else blocks_of_keys(key_segment == 0, block_k).any(-1)


def forced_blocks(
    visible: Tensor | None,
    q_len: int,
    k_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    keep_sink: bool,
    window_slashes: int,
    device: torch.device,
) -> Tensor:
    """Bool [B|1, n_query_blocks, n_key_blocks]: in one of the main slashes, or the first visible block."""
    key_block = torch.arange(ceil_div(k_len, block_k), device=device)
    first, _ = query_block_positions(q_len, q_offset, block_q, device)
    forced = ((first // block_k)[:, None] - key_block < window_slashes)[None]
    if not keep_sink:
        return forced
    if visible is None:
        return forced | (key_block == 0)
    return forced | (visible & (visible.cumsum(-1) == 1))[:, None]


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
    device = query.device
    q_len, k_len = query.shape[2], key.shape[2]
    first, last = query_block_positions(q_len, q_offset, block_q, device)
    key_first = torch.arange(ceil_div(k_len, block_k), device=device) * block_k
    key_last = (key_first + block_k).clamp(max=k_len) - 1
    kept = torch.ones((first.numel(), key_first.numel()), dtype=torch.bool, device=device)
    if causal:
        kept = kept & (key_first <= last[:, None])
    if window > 0:
        kept = kept & (key_last > first[:, None] - window)
    # With both, the rows' reaches p - window + 1 .. p join to one interval, so the two tests together are
    # exact.
    kept = kept[None, None].expand(segment_batch(query_segment, key_segment), 1, -1, -1)
    if key_segment is None and query_segment is None:
        return pack_bits(kept)
    q_low, q_high = _segment_range(query_segment, q_len, block_q, device)
    k_low, k_high = _segment_range(key_segment, k_len, block_k, device)
    meet = (k_low[:, None] <= q_high[..., None]) & (k_high[:, None] >= q_low[..., None])
    return pack_bits(kept & meet[:, None])


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
    batch, heads, q_len, _ = query.shape
    k_len, v_dim = value.shape[2:]
    out = query.new_empty((batch, q_len, heads, v_dim)).transpose(1, 2)
    lse = query.new_empty((batch, heads, q_len), dtype=torch.float32)
    # 0 * NaN is NaN: values that are not finite are taken out of the product and marked in the rows that see
    # them.
    finite = value.isfinite()
    clean = torch.where(finite, value, 0).float()
    poisoned = ~finite.all(-1).repeat_interleave(heads // value.shape[1], 1)  # [B, Hq, Sk]
    for part in _row_chunks(query, key, q_len, block_q):
        rows = torch.arange(part.start, part.stop, device=query.device)
        allowed = _allowed(rows + q_offset, k_len, causal, window)
        if key_segment is not None or query_segment is not None:
            allowed = allowed & _same_segment(query_segment, key_segment, part, k_len)
        words = block_mask[:, :, part.start // block_q : ceil_div(part.stop, block_q)]
        kept = unpack_bits(words, ceil_div(k_len, block_k))
        kept = kept.repeat_interleave(block_q, 2)[:, :, : rows.numel()]
        allowed = allowed & kept.repeat_interleave(block_k, 3)[..., :k_len]  # [B|1, Hq|1, rows, Sk]
        scores = torch.where(allowed, _scores(query[:, :, part], key, scale), -torch.inf)
        row_lse = scores.logsumexp(-1)
        weights = torch.where(allowed, torch.exp(scores - row_lse[..., None]), 0)
        result = grouped_product(weights, clean)
        sees_poison = (allowed & poisoned[:, :, None]).any(-1, keepdim=True)
        out[:, :, part] = torch.where(sees_poison, torch.nan, result).to(out.dtype)
        lse[:, :, part] = row_lse
    return out, lse


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
    n_key_blocks = ceil_div(key.shape[2], block_k)
    ends = row_ends(key_segment, query.shape[2], q_offset, query.device)
    rows, valid = sampled_rows(ends, chunk_n, sample_rows)
    smallest = query.new_ones(query.shape[:2], dtype=torch.float32)
    for part in _row_chunks(query, key, rows.shape[1], 1):
        mass = block_mass(query, key, key_segment, scale, q_offset, rows[:, part], valid[:, part], block_k)
        kept = unpack_bits(_rows_of(block_mask, rows[:, part] // block_q), n_key_blocks)
        total = mass.sum(-1)
        share = torch.where(total > 0, (mass * kept).sum(-1) / torch.where(total > 0, total, 1), 1)
        smallest = torch.minimum(smallest, share.amin(-1))
    return smallest


def segment_batch(query_segment: Tensor | None, key_segment: Tensor | None) -> int:
    """Batch size of what depends on the segments: 1 unless one of them differs along the batch."""
    for segment in (query_segment, key_segment):
        if segment is not None and segment.shape[0] != 1:
            return segment.shape[0]
    return 1


def _row_chunks(query: Tensor, key: Tensor, n_rows: int, multiple: int) -> list[slice]:
    row_bytes = 4 * query.shape[0] * query.shape[1] * max(key.shape[2], 1)
    step = max(SCORE_BYTES // max(row_bytes, 1) // multiple, 1) * multiple
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def _scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Scaled fp32 scores [B, Hq, rows, Sk], without repeating the keys."""
    return grouped_product(query.float() * scale, key.float().transpose(-1, -2))


def grouped_product(left: Tensor, right: Tensor) -> Tensor:
    """left [B, Hq, M, K] @ right [B, Hkv, K, N]: each KV head serves Hq // Hkv consecutive query heads."""
    batch, heads, rows, _ = left.shape
    kv_heads = right.shape[1]
    grouped = left.reshape(batch, kv_heads, heads // kv_heads * rows, left.shape[3])
    return (grouped @ right).reshape(batch, heads, rows, right.shape[3])


def _rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """[B, H, R, C]: of x [B|1, H, S, C] each batch entry's own rows, int64 [B|1, R]."""
    batch, (heads, _, columns) = max(x.shape[0], rows.shape[0]), x.shape[1:]
    index = rows[:, None, :, None].expand(batch, heads, -1, columns)
    return x.expand(batch, -1, -1, -1).gather(2, index)


def _allowed(position: Tensor, k_len: int, causal: bool, window: int) -> Tensor:
    """Bool [..., Sk] for positions of any shape."""
    key = torch.arange(k_len, device=position.device)
    allowed = torch.ones((*position.shape, k_len), dtype=torch.bool, device=position.device)
    if causal:
        allowed = allowed & (key <= position[..., None])
    if window > 0:
        allowed = allowed & (key > position[..., None] - window)
    return allowed


def _same_segment(
    query_segment: Tensor | None, key_segment: Tensor | None, part: slice, k_len: int
) -> Tensor:
    """Bool [B|1, 1, rows|1, Sk|1]: the key is valid and of the row's segment."""
    if key_segment is None:
        assert query_segment is not None
        return (query_segment[:, part] == 0)[:, None, :, None]
    keys = key_segment[:, None, None]
    if query_segment is None:
        return keys == 0
    return (keys >= 0) & (keys == query_segment[:, None, part, None])


def block_mass(
    query: Tensor,
    key: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    rows: Tensor,
    valid: Tensor,
    block_k: int,
) -> Tensor:
    """Softmax mass of every key block, fp32 [B, Hq, R, n_key_blocks]; 0 for invalid rows.

    ``rows`` int64 and ``valid`` bool [B|1, R].
    """
    weights = row_weights(query, key, key_segment, scale, q_offset, rows, valid)
    mass = blocks_of_keys(weights, block_k).sum(-1)
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0, mass / torch.where(total > 0, total, 1), 0)


def row_weights(
    query: Tensor,
    key: Tensor,
    key_segment: Tensor | None,
    scale: float,
    q_offset: int,
    rows: Tensor,
    valid: Tensor,
) -> Tensor:
    """Exponentials of the rows' scores less their largest, fp32 [B, Hq, R, Sk]; 0 where nothing is seen."""
    k_len = key.shape[2]
    allowed = (_allowed(rows + q_offset, k_len, True, 0) & valid[..., None])[:, None]
    if key_segment is not None:
        allowed = allowed & (key_segment == 0)[:, None, None]
    scores = torch.where(allowed, _scores(_rows_of(query, rows), key, scale), -torch.inf)
    row_max = scores.amax(-1, keepdim=True) if k_len else scores.new_zeros(())
    return torch.where(allowed, torch.exp(scores - row_max), 0)


def blocks_of_keys(x: Tensor, block_k: int) -> Tensor:
    """[..., Sk] to [..., n_key_blocks, block_k], padded with zeros."""
    n_key_blocks = ceil_div(x.shape[-1], block_k)
    padded = torch.nn.functional.pad(x, (0, n_key_blocks * block_k - x.shape[-1]))
    return padded.unflatten(-1, (n_key_blocks, block_k))


def _fewest_reaching(scores: Tensor, alpha: float) -> Tensor:
    """Bool [..., n] for scores [..., n]: the fewest entries, largest first, that reach alpha of the total."""
    if alpha >= 1:
        return torch.ones_like(scores, dtype=torch.bool)
    ordered, order = scores.double().sort(dim=-1, descending=True, stable=True)
    cumulated = ordered.cumsum(-1)
    before = cumulated - ordered
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before < alpha * cumulated[..., -1:])


def _segment_range(
    segment: Tensor | None, length: int, block: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Smallest and largest valid segment id of every block, int32 [B|1, n_blocks]; low > high: none valid."""
    if segment is None:
        segment = torch.zeros((1, length), dtype=torch.int32, device=device)
    limits = torch.iinfo(torch.int32)
    blocks = ceil_div(length, block)
    padded = torch.nn.functional.pad(segment, (0, blocks * block - length), value=-1)
    padded = padded.unflatten(-1, (blocks, block))
    valid = padded >= 0
    low = torch.where(valid, padded, limits.max).amin(-1)
    high = torch.where(valid, padded, limits.min).amax(-1)
    return low, high
