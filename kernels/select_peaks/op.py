"""The op's arguments, what it asks of them, its fake, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..choice import Call
from ..defaults import ADAPTIVE_PEAK
from ..select_adaptive.op import call_of, check_selection
from ..shared.forced import Forced
from ..shared.grid import Grid, new_index
from ..shared.record import Size
from ..shared.shapes import scale_or_default

NAME = "select_peaks"
RETURNS = "Tensor"


class Arguments(NamedTuple):
    """See :func:`select_peaks`."""

    query: Tensor
    key: Tensor
    representatives: Tensor
    log_weights: Tensor
    spreads: Tensor
    key_segment: Tensor | None
    scale: float
    q_offset: Size
    block_q: int
    block_k: int
    peak: float
    keep_sink: bool
    window_slashes: int
    last_rows: int
    q_stride: Size = 1
    sinks: Tensor | None = None

    @property
    def forced(self) -> Forced:
        return Forced(self.keep_sink, self.window_slashes, self.last_rows)


def check(a: Arguments) -> None:
    """Raises ValueError for arguments that do not fit."""
    check_selection(NAME, a, peak=a.peak)
    members = a.representatives.shape[2]
    if members < 2:
        raise ValueError(f"{NAME}: 'representatives' must hold at least one landmark, got {members - 1}")


def fake(a: Arguments) -> Tensor:
    """The result's shape."""
    check(a)
    return new_index(a.query, a.query.shape[:2], Grid.of(a))


def kernel(a: Arguments) -> Call | None:
    """What the kernel is chosen by on a GPU, or None."""
    return call_of(NAME, a)


def select_peaks(
    query: Tensor,
    key: Tensor,
    representatives: tuple[Tensor, Tensor, Tensor],
    *,
    key_segment: Tensor | None = None,
    scale: float | None = None,
    q_offset: int = 0,
    block_q: int = 128,
    block_k: int = 128,
    peak: float = ADAPTIVE_PEAK,
    keep_sink: bool = True,
    window_slashes: int = 2,
    last_rows: int = 0,
    q_stride: int = 1,
    sinks: Tensor | None = None,
) -> Tensor:
    """Per query block, the key blocks of which some row gives one key a large share, as a block_mask.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D]; ``representatives``: :func:`block_representatives` of key, with
    at least one landmark. A block before the query block's own is kept if a landmark of it gets the share
    ``peak`` of some row's attention. A row's attention, the total, is that to the keys of the query block's
    own blocks (exact), to the landmarks of the prompt's first block, and to every eight blocks before its
    own, whose keys but the landmarks count as normally distributed; fewer than eight that are left before its
    own, and other landmarks, count nothing: what is found has more than its share of a total that is too
    small. The sink block and ``window_slashes`` >= 1 block diagonals are always kept. Query blocks that hold
    a prompt's last ``last_rows`` rows keep every block; ``peak`` 0 keeps every block that causality allows.
    Kernels for GPUs round the numbers of queries and landmarks to bytes. ``sinks`` float32 [Hq] or [1]:
    logits that take their share of each row's attention, as in :func:`block_sparse_attention`.
    Returns int32 [B, Hq, n_query_blocks, n_words]. Source: docs/accuracy.md. Raises ValueError for arguments
    that do not fit.
    """
    scale = scale_or_default(scale, query)
    where = (*representatives, key_segment, scale, q_offset, block_q, block_k)
    a = Arguments(query, key, *where, peak, keep_sink, window_slashes, last_rows, q_stride, sinks)
    check(a)
    return torch.ops.sampleattn.select_peaks.default(*a)
