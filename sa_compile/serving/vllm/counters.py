"""What this process sampled: counted without waiting for the device, and said in the log now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sa_compile.kernels.shared.blocks import popcount

INTERVAL = 10.0  # seconds between two lines of the log, as vLLM's own


@dataclass(frozen=True)
class Counted:
    """Prompts or chunks and tokens that were sampled, and prompts that an error gave to the parent class.

    ``density``: kept blocks of all that causality allows, mean over steps, each measured in one layer, layers
    in turn; NaN before the first.
    """

    prefills: int
    tokens: int
    density: float
    failures: int

    def __str__(self) -> str:
        return (
            f"{self.prefills} prefills of {self.tokens} tokens sampled, mean density {self.density:.3f}, "
            f"{self.failures} computed by vLLM's own backend after an error"
        )


class Counters:
    """Sums on the host, and the kept blocks on the device."""

    def __init__(self) -> None:
        self.prefills = self.tokens = self.failures = 0
        self._kept: Tensor | None = None
        self._allowed = 0
        self._said = (0, 0)
        self._due = 0.0
        self._pending: tuple[Tensor, Counted, int, torch.cuda.Event] | None = None

    def sampled(self, tokens: int) -> None:
        """One more prompt, or chunk of one."""
        self.prefills += 1
        self.tokens += tokens

    def failed(self, prefills: int) -> None:
        """An error gave prompts back."""
        self.failures += prefills

    def observe(self, block_mask: Tensor, allowed: int) -> None:
        """Kept blocks of block_mask int32 [B, Hq, n_query_blocks, n_words], of ``allowed`` in all."""
        kept = popcount(block_mask).sum(dtype=torch.int64)
        self._kept = kept if self._kept is None else self._kept + kept
        self._allowed += allowed

    def read(self) -> Counted:
        """The counts so far; waits for the device."""
        return self._counted(None if self._kept is None else int(self._kept), self._allowed)

    def say(self, log: Callable[[str], None]) -> None:
        """Log the counts, if there are new ones and the last line is old enough; never waits."""
        if self._pending is not None:
            host, counted, allowed, arrived = self._pending
            if not arrived.query():
                return
            self._pending = None
            log(str(self._counted(int(host), allowed, counted)))
            return
        now = time.monotonic()
        if now < self._due or (self.prefills, self.failures) == self._said:
            return
        self._due, self._said = now + INTERVAL, (self.prefills, self.failures)
        if self._kept is None or self._kept.device.type != "cuda":
            log(str(self.read()))
            return
        host = torch.empty((), dtype=torch.int64, pin_memory=True)
        host.copy_(self._kept, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending = host, self._counted(None, 0), self._allowed, arrived

    def _counted(self, kept: int | None, allowed: int, of: Counted | None = None) -> Counted:
        density = float("nan") if kept is None or not allowed else kept / allowed
        if of is not None:
            return Counted(of.prefills, of.tokens, density, of.failures)
        return Counted(self.prefills, self.tokens, density, self.failures)


def allowed_blocks(q_len: int, q_offset: int, heads: int, block_q: int, block_k: int) -> int:
    """Blocks of ``heads`` heads that causality allows to the ``q_len`` rows from position ``q_offset`` on."""
    stops = (min(start + block_q, q_len) + q_offset for start in range(0, q_len, block_q))
    return heads * sum(-(-stop // block_k) for stop in stops)


COUNTERS = Counters()


def counted() -> Counted:
    """What this process (one for each rank) sampled since it started; waits for the device."""
    return COUNTERS.read()
