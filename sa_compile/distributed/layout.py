"""Which rank holds which rows of a prompt: runs of as many rows as a query block has, dealt out in turn.

Run i is rank ``i % ranks``'s. So every rank has rows early and late in the prompt, and causal attention, and
what is kept of it, costs all of them about the same. Every rank holds equally many rows: the last ones may
lie behind the prompt's end, and stand for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_compile.kernels.shared.shapes import ceil_div


@dataclass(frozen=True)
class Layout:
    """``length`` rows of a prompt over ``ranks``, in runs of ``run`` rows."""

    length: int
    ranks: int
    run: int

    @property
    def rows_of_a_rank(self) -> int:
        return ceil_div(self.length, self.run * self.ranks) * self.run

    def rows(self, rank: int) -> int:
        """How many of a rank's rows are the prompt's; they come first."""
        round_, into = divmod(self.length, self.run * self.ranks)
        return round_ * self.run + min(max(into - rank * self.run, 0), self.run)

    def place(self, position: int) -> tuple[int, int]:
        """The rank that holds a position of the prompt, and the row there."""
        run, into = divmod(position, self.run)
        return run % self.ranks, run // self.ranks * self.run + into

    def of_rank(self, x: Tensor, dim: int, rank: int) -> Tensor:
        """Of a tensor with an entry a row of the prompt, a rank's entries; 0 behind the prompt's end."""
        missing = self.rows_of_a_rank * self.ranks - x.shape[dim]
        padded = F.pad(x.movedim(dim, -1), (0, missing)).unflatten(-1, (-1, self.ranks, self.run))
        return padded[..., rank, :].flatten(-2).movedim(-1, dim).contiguous()


def in_order(parts: Tensor, dim: int, run: int) -> Tensor:
    """Entries of all ranks, [ranks, ...], in the prompt's order; a rank's lie along ``dim``, in runs."""
    apart = parts.unflatten(dim + 1, (-1, run)).movedim(0, dim + 1)
    return apart.flatten(dim, dim + 2)


def shard_mask(attention_mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """What the attention of a shared prompt takes for a mask: int32 [B|0, 1, 1, length], -1 for padding.

    Of size 0 if nothing is padding. transformers passes a mask of four dimensions on as it is, and none of
    its own is int32. Raises ValueError for a mask that is not [B, length].
    """
    if attention_mask is None:
        return torch.empty((0, 1, 1, length), dtype=torch.int32, device=device)
    if attention_mask.dim() != 2 or attention_mask.shape[1] != length:
        raise ValueError(
            f"context_parallel: 'attention_mask' must be [B, {length}], 0 for padding, or None, "
            f"got {list(attention_mask.shape)}"
        )
    valid = attention_mask != 0
    if bool(valid.all()):
        return shard_mask(None, length, device)
    return (valid.to(torch.int32) - 1)[:, None, None]


def is_shard_mask(attention_mask: object) -> bool:
    """Was a mask made by :func:`shard_mask`?"""
    return (
        isinstance(attention_mask, Tensor)
        and attention_mask.dtype == torch.int32
        and attention_mask.dim() == 4
    )
