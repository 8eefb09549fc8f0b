"""Which key blocks hold a key that may be seen, for the kernels of method C."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_and_sinks(
    key_segment: Tensor | None, n: int, block_k: int, keep_sink: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """int8 [B|1, n]: the block holds a valid key; int32 [B|1]: the first such, n if not forced."""
    if key_segment is None:
        visible = torch.ones((1, n), dtype=torch.int8, device=device)
        return visible, torch.full((1,), 0 if keep_sink else n, dtype=torch.int32, device=device)
    padded = torch.nn.functional.pad(key_segment == 0, (0, n * block_k - key_segment.shape[1]))
    seen = padded.unflatten(-1, (n, block_k)).any(-1)
    block = torch.arange(n, dtype=torch.int32, device=device)
    sinks = torch.where(seen, block, n).amin(-1) if keep_sink else torch.full_like(seen[:, 0].int(), n)
    return seen.to(torch.int8), sinks.int()
