"""What becomes of the requests of one step: which are sampled, and which are the parent class's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from sa_compile.config import SampleAttentionConfig
from sa_compile.passes.conditions.length_range import settings_for

# A chunk of a long prompt pays for gathering all keys before it, and for their representatives, from here on.
CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Long:
    """A request that is sampled: its row in the batch, its tokens, and the keys that they see."""

    row: int
    tokens: slice
    kv_len: int
    config: SampleAttentionConfig

    @property
    def q_len(self) -> int:
        """Query rows of this step; row i has position ``kv_len - q_len + i``."""
        return self.tokens.stop - self.tokens.start


@dataclass(frozen=True)
class Run:
    """Requests side by side that are the parent class's, with metadata of their own."""

    rows: slice
    tokens: slice
    metadata: Any = None


@dataclass
class Plan:
    """One step. ``observed``: the layer that measures density; ``failed``: the rest of it is the parent's."""

    long: tuple[Long, ...]
    rest: tuple[Run, ...]
    observed: int = 0
    failed: bool = False
    counted: bool = field(default=False)


def long_requests(
    starts: Sequence[int],
    kv_lens: Sequence[int],
    prefilling: Sequence[bool] | None,
    config: SampleAttentionConfig,
) -> tuple[Long, ...]:
    """Requests that are sampled: prompts of ``min_seq_len`` rows or more, and chunks of such prompts.

    ``starts``: the first token of each request, and the end of the last; ``kv_lens``: keys that the last
    token of each sees; ``prefilling``: whether a request still reads its prompt, None if not known.
    """
    fewest = fewest_rows(config)
    found = []
    for row, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        q_len = stop - start
        if q_len < fewest or (prefilling is not None and not prefilling[row]):
            continue
        chosen = _settings(config, q_len, kv_lens[row])
        if chosen is not None:
            found.append(Long(row, slice(start, stop), kv_lens[row], chosen))
    return tuple(found)


def fewest_rows(config: SampleAttentionConfig) -> int:
    """No request with fewer rows in a step is sampled."""
    return max(min(CHUNK_ROWS, _least(config)), 2)


def runs_between(long: Sequence[Long], starts: Sequence[int]) -> tuple[Run, ...]:
    """The other requests, in as few runs as can be, without those that pad the batch and have no tokens."""
    taken = {one.row for one in long}
    runs: list[Run] = []
    first: int | None = None
    for row in range(len(starts)):
        other = row < len(starts) - 1 and row not in taken and starts[row] < starts[row + 1]
        if other and first is None:
            first = row
        elif not other and first is not None:
            runs.append(Run(slice(first, row), slice(starts[first], starts[row])))
            first = None
    return tuple(runs)


def rehearsal(
    config: SampleAttentionConfig, max_q_len: int, max_kv_len: int
) -> list[tuple[int, int, SampleAttentionConfig]]:
    """Prefills (q_len, kv_len, options) that compile what any prefill needs, the longest first.

    Triton compiles anew where numbers of rows and words double, and where a length is no multiple of 16.
    """
    found, n = [], max_kv_len
    while n > 0:
        for kv_len in (n, n - 3):
            q_len = min(max_q_len, kv_len)
            chosen = _settings(config, q_len, kv_len) if q_len > 1 else None
            if chosen is not None:
                found.append((q_len, kv_len, chosen))
        n //= 2
    return found


def _least(config: SampleAttentionConfig) -> int:
    return config.min_seq_len if config.tuned is None else config.tuned.first_length


def _settings(config: SampleAttentionConfig, q_len: int, kv_len: int) -> SampleAttentionConfig | None:
    """The options for a prompt that has ``kv_len`` tokens so far; None: it stays the parent's."""
    least = _least(config)
    worth_it = q_len >= CHUNK_ROWS and _scores(q_len, kv_len) >= _scores(least, least)
    if q_len < least and not worth_it:
        return None
    chosen = settings_for(config, sympy.Integer(kv_len), bool)
    return None if chosen.exact else chosen.config


def _scores(q_len: int, kv_len: int) -> int:
    """Twice the causal scores of the last ``q_len`` of ``kv_len`` rows."""
    return q_len * (2 * kv_len - q_len)
