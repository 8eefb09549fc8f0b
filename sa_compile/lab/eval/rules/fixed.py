"""Rules that do not look at the data: full attention, StreamingLLM, BigBird."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from sa_compile.kernels.shared.shapes import ceil_div

from .base import Problem, Rule


@dataclass(frozen=True)
class Full(Rule):
    """Every block that causality and padding allow: dense attention on the same op."""

    name: ClassVar[str] = "full"

    def blocks(self, problem: Problem) -> Tensor:
        return ~problem.none()


@dataclass(frozen=True)
class StreamingLLM(Rule):
    """The first ``sink`` tokens and a sliding window, as a prefill mask.

    The window holds ``window`` tokens, or ``share`` of the keys if ``window`` is 0; a block is kept if an
    entry of it is. Source: Xiao et al., arXiv 2309.17453 (sink of 4).
    """

    name: ClassVar[str] = "streaming"
    sink: int = 4
    window: int = 0
    share: float = 0.25

    def blocks(self, problem: Problem) -> Tensor:
        window = self.window or math.ceil(self.share * problem.kv_len)
        first, _ = problem.row_positions
        last_key = (torch.arange(problem.n_key_blocks, device=problem.device) + 1) * problem.block_k - 1
        kept = last_key.clamp(max=problem.kv_len - 1) > first[:, None] - window
        return kept | self._sink_blocks(problem)

    def _sink_blocks(self, problem: Problem) -> Tensor:
        """Bool [B|1, 1, 1, n_key_blocks]: blocks that hold one of the first ``sink`` valid keys."""
        if problem.valid_keys is None:
            key_block = torch.arange(problem.n_key_blocks, device=problem.device)
            return (key_block < ceil_div(self.sink, problem.block_k))[None, None, None]
        sinks = problem.valid_keys & (problem.valid_keys.cumsum(-1) <= self.sink)
        return problem.pooled_keys(sinks.float()[:, None, :, None])[:, :, None, :, 0] > 0


@dataclass(frozen=True)
class BigBird(Rule):
    """Window, global and random blocks, without training.

    Of Hugging Face's two-sided defaults (3 window blocks, first and last block global, 3 random ones)
    causality leaves: ``window_blocks`` block diagonals, the first ``global_blocks`` blocks, and
    ``random_blocks`` others drawn per head and query block from those below the window. Source: Zaheer et
    al., arXiv 2007.14062.
    """

    name: ClassVar[str] = "bigbird"
    window_blocks: int = 3
    global_blocks: int = 1
    random_blocks: int = 3
    seed: int = 0

    def blocks(self, problem: Problem) -> Tensor:
        near = problem.window(self.window_blocks) | (
            torch.arange(problem.n_key_blocks, device=problem.device) < self.global_blocks
        )
        draw = _drawn(self.seed, problem.shape[1:], problem.device)
        open_to_draw = problem.allowed & ~near
        draw = torch.where(open_to_draw, draw, -1.0)
        rank = draw.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        return near | ((rank < self.random_blocks) & open_to_draw)


@lru_cache(maxsize=8)  # all layers of a model ask for the same, and a copy to the GPU waits for it
def _drawn(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform numbers, drawn on the CPU so that a seed means the same blocks on every device."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)
