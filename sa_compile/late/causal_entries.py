"""What a mask means, read from its entries.

A mask that another graph made, or the caller, is a tensor of unknown entries when a graph is compiled. When
the graph runs it is causal with offset, window and key padding, entry by entry, or nothing is said of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Rows, and entries, that are compared at once: what the comparison needs beside the mask.
_ROWS_AT_ONCE = 1024
_ENTRIES_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class CausalEntries:
    """With ``p = q + q_offset``, every entry is ``p - window < k <= p and key_valid[b, k]``.

    ``window`` 0: no lower bound; ``key_valid`` bool [B, Sk], False for keys that no row sees; ``padded``: a
    key between those of the first and the last row is not valid.
    """

    q_offset: int
    window: int
    key_valid: Tensor
    padded: bool


def read_causal(mask: Tensor) -> CausalEntries | None:
    """The meaning of a bool mask [B, Sq, Sk]; None if it is another one, or allows nothing.

    None too where rows would reach past the keys, and where no row shows which key is its last: then any
    offset would do, as for attention that is not causal. Waits for the device, twice.
    """
    _, q_len, kv_len = mask.shape
    key_valid = mask.any(1)
    bounds = _bounds(mask, key_valid)
    if bounds is None or not 0 <= bounds[0] <= kv_len - q_len:
        return None
    q_offset, window = bounds
    first = max(q_offset - window + 1, 0) if window else 0
    unpadded = key_valid[:, first : q_offset + q_len].all()
    holds, unpadded = torch.stack([_holds(mask, q_offset, window, key_valid), unpadded]).tolist()
    return CausalEntries(q_offset, window, key_valid, not unpadded) if holds else None


def _bounds(mask: Tensor, key_valid: Tensor) -> tuple[int, int] | None:
    """The only offset and window that fit the last row's newest and oldest keys.

    How many rows see the newest says which row has it as its own; a window hides keys that other rows see.
    """
    batch, q_len, kv_len = mask.shape
    position = torch.arange(kv_len, device=mask.device)
    last = mask[:, -1]
    newest = torch.where(last, position, -1).amax(1)  # [B]
    rows = mask[torch.arange(batch, device=mask.device), :, newest.clamp(min=0)].sum(1)  # [B]
    oldest = torch.where(last, position, kv_len).amin(1)
    first = torch.where(key_valid, position, kv_len).amin(1)
    found = list(zip(*torch.stack([newest, rows, oldest, first]).tolist(), strict=True))
    offsets = [new + seen_by - q_len for new, seen_by, _, _ in found if new >= 0 and seen_by < q_len]
    if not offsets:
        return None
    q_offset, oldest_seen = max(offsets), min(old for _, _, old, _ in found)
    hidden = min(key for _, _, _, key in found) < oldest_seen
    return q_offset, q_offset + q_len - oldest_seen if hidden else 0


def _holds(mask: Tensor, q_offset: int, window: int, key_valid: Tensor) -> Tensor:
    """Whether every entry is what ``CausalEntries`` says; a bool tensor of no dimension."""
    batch, q_len, kv_len = mask.shape
    step = max(1, min(q_len, _ROWS_AT_ONCE, _ENTRIES_AT_ONCE // (batch * kv_len)))
    valid, keys = key_valid[:, None], torch.arange(kv_len, device=mask.device)
    wrong = []
    for first in range(0, q_len, step):
        slab = mask[:, first : first + step]
        at = torch.arange(first, first + slab.shape[1], device=mask.device)[:, None] + q_offset
        end = first + slab.shape[1] + q_offset
        # Before ``start``, all rows see all valid keys, or with a window no row sees any.
        start = max(first + q_offset + 1 - window, 0)
        key = keys[start:end]
        band = valid[..., start:end] & (key <= at)
        if window:
            band = band & (key > at - window)
        wrong += [
            slab[..., :start].any() if window else (slab[..., :start] != valid[..., :start]).any(),
            (slab[..., start:end] != band).any(),
            slab[..., end:].any(),
        ]
    return ~torch.stack(wrong).any()
