"""What a graph found out of the masks it read when it last ran, and what its report then says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from sa_compile.late.attention import NOT_CAUSAL
from sa_compile.late.block_lists import OTHER_BLOCKS
from sa_compile.passes.rewrite.outputs import without_outputs
from sa_compile.passes.site_record import SiteRecord


class MasksSeen:
    """The masks that one compiled graph reads, as its last run found them."""

    def __init__(self, records: Iterable[SiteRecord] = ()) -> None:
        self.count = len({record.mask_read for record in records if record.mask_read is not None})
        self._last: list[list[int]] = []

    def wrap(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled graph, of whose outputs the last ones, what it found, come here."""
        return without_outputs(compiled, self.count, self._see) if self.count else compiled

    def as_run(self, record: SiteRecord) -> SiteRecord:
        """The row of an attention with what became of it in the last run; as it is if nothing was read."""
        if record.mask_read is None or not self._last:
            return record
        offset, window, padded = self._last[record.mask_read]
        if offset == NOT_CAUSAL:
            reason = "the mask, read when it last ran, is not causal"
            kernel = "sdpa" if record.spelling == "sdpa" else ""
            return replace(record, outcome="kept", mask="not causal", kernel=kernel, reason=reason)
        if offset == OTHER_BLOCKS:
            reason = "the block lists, read when they last ran, are not those of the mask_mod"
            return replace(record, outcome="exact", mask="block lists", reason=reason)
        parts = ["causal" if offset == 0 else f"causal(offset={offset})"]
        parts += [f"window({window})"] if window else []
        mask = " & ".join([*parts, *(["key_valid"] if padded else [])])
        if window:
            reason = f"not plain causal: {mask}, read when it last ran"
            return replace(record, outcome="exact", mask=mask, reason=reason)
        return replace(record, mask=mask)

    def _see(self, found: Sequence[Tensor]) -> None:
        self._last = [one.tolist() for one in found]
